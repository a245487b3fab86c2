"""How those who wait for a large file hear how far it is."""

from collections.abc import Callable

Tell = Callable[[str, float, int], None]
"""Hears what is being done, the share of the file for which it is done, and rows so far."""


def tell_nobody(stage: str, share: float, rows: int) -> None:
    """Keep progress to oneself."""
