"""Text that comes from files and people, made safe and short enough to show."""

import difflib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable

_SECRETS = re.compile(
    r"://[^/\s]*@|\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{16,})"
)
_SECRET_VARIABLES = ("_TOKEN", "_API_KEY", "_SECRET", "_PASSWORD")
_MIN_SECRET_CHARS = 8
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


def visible_text(text: str) -> str:
    """Return `text` escaped as by `escape_control`, its lines and tabs kept."""
    return "".join(char if char in "\n\t" else escape_control(char) for char in text)


def shell_word(value: object) -> str:
    """Return a path or text escaped, quoted where a shell would not take it as one word."""
    return escape_control(shlex.quote(str(value)))


def excerpt(text: str, limit: int = 80) -> str:
    """Return `text` escaped, on one line, and cut to `limit` characters with an ellipsis."""
    flat = escape_control(re.sub(r"\s+", " ", text[: limit * 8]).strip())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that `name` was most likely meant to be, or None."""
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None


def holds_secret(text: str) -> bool:
    """Return whether `text` holds what looks like an access token, or a password in a URL."""
    return _SECRETS.search(text) is not None


def hide_secrets(text: str) -> str:
    """Return `text` with tokens, passwords in URLs, and the values of secret variables hidden.

    Found by their values, not by names: `num_tokens: 7` and `pad_token` stay as they are.
    """
    for name, value in os.environ.items():
        if name.endswith(_SECRET_VARIABLES) and len(value) >= _MIN_SECRET_CHARS:
            text = text.replace(value, "<secret>")
    return _SECRETS.sub(lambda found: "://<secret>@" if "://" in found[0] else "<secret>", text)


def is_unicode(text: str) -> bool:
    """Return whether `text` is characters only: no bytes of another encoding, no half of a pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
