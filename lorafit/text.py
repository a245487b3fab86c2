"""Text that comes from files and people, made safe and short enough to show."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def escape_control(text: str) -> str:
    r"""Return `text` with control, bidi and surrogate characters shown as `\x1b` or `\u202e`.

    A data set or file name could otherwise move the cursor, hide text or set a terminal's title.
    """
    return "".join(
        char.encode("unicode_escape", "backslashreplace").decode("ascii")
        if unicodedata.category(char) in _UNSAFE_CATEGORIES
        else char
        for char in text
    )


def excerpt(text: str, limit: int = 80) -> str:
    """Return `text` escaped, on one line, and cut to `limit` characters with an ellipsis."""
    flat = escape_control(re.sub(r"\s+", " ", text[: limit * 8]).strip())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that `name` was most likely meant to be, or None."""
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None
