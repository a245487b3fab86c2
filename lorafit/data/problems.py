"""Collects what is wrong with a data file, so that one error shows several problems at once."""

from lorafit.errors import DataError
from lorafit.text import escape_control

SHOWN = 5
"""Problems listed in an error; the others are counted."""
GIVE_UP_AFTER = 1000
"""Problems after which reading stops: the file is plainly of another kind."""


class Problems:
    """The problems found in one file: the first few in words, all of them counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self._shown: list[str] = []
        self._hint: str | None = None

    def add(self, where: str, message: str, hint: str | None = None) -> None:
        """Note a problem; the first hint is the one that is shown.

        Raises:
            DataError: there are so many problems that reading on would be of no use.
        """
        self.count += 1
        self._hint = self._hint or hint
        if len(self._shown) < SHOWN:
            self._shown.append(f"{where}: {message}")
        if self.count >= GIVE_UP_AFTER:
            self.raise_if_any(more="at least ")

    def raise_if_any(self, more: str = "") -> None:
        """Raise the problems found so far, if any.

        Raises:
            DataError: with the first problems and the count of all of them.
        """
        if not self.count:
            return
        lines = list(self._shown)
        if self.count > len(self._shown):
            lines.append(f"{more}{self.count} problems in {self.name}; the first {SHOWN} are shown")
        hint = self._hint or "correct these rows and run the command again"
        raise DataError("\n".join(lines), hint=escape_control(hint))
