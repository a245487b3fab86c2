"""Figures and moments as the report spells them."""

from datetime import datetime

from lorafit.units import format_count

ABSENT = "\N{EN DASH}"
"""What stands where there is no value."""


def show_loss(value: object) -> str:
    """Return a loss with four digits after the point."""
    return f"{value:.4f}" if isinstance(value, int | float) else ABSENT


def show_whole(value: object) -> str:
    """Return a whole number with separators."""
    return f"{value:,.0f}" if isinstance(value, int | float) else ABSENT


def show_per_second(value: object) -> str:
    """Return tokens a second."""
    return f"{value:,.0f} tok/s" if isinstance(value, int | float) else ABSENT


def show_tokens(value: int) -> str:
    """Return how many tokens were trained on."""
    return f"{format_count(value)} tokens" if value else ""


def show_moment(text: object) -> str:
    """Return an ISO 8601 moment as a person reads it, or nothing if it is none."""
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    except ValueError:
        return ""
