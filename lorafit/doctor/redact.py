"""Take out of a report what its reader must not learn: who, which host, which card, which token."""

import getpass
import re
import socket
from functools import cache
from pathlib import Path

_TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{16,}|[0-9a-f]{40})\b"
)
_URL_USERS = re.compile(r"(?<=://)[^/\s:@]+(:[^/\s@]*)?@")
_DEVICE_IDS = re.compile(
    r"\b(GPU|MIG)-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(/\d+/\d+)?"
)


def redact(text: str) -> str:
    """Return `text` with the home folder as `~`, and user, host, UUIDs and tokens replaced."""
    text = _TOKENS.sub("<token>", text)
    text = _URL_USERS.sub("<user>@", text)
    text = _DEVICE_IDS.sub(r"\1-<uuid>", text)
    for pattern, replacement in _identity():
        text = pattern.sub(replacement, text)
    return text


@cache
def _identity() -> tuple[tuple[re.Pattern[str], str], ...]:
    patterns = []
    home = str(Path.home())
    if home != "/":
        patterns.append((re.compile(rf"(?<![\w/]){re.escape(home)}(?=/|\b|$)"), "~"))
    for name, replacement in ((_user(), "<user>"), (socket.gethostname(), "<host>")):
        # Names that are also words of every report say nothing about anyone.
        if name and name not in ("root", "user", "localhost", "python"):
            pattern = rf"(?<![\w.-]){re.escape(name)}(?![\w.-])"
            patterns.append((re.compile(pattern), replacement))
    return tuple(patterns)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        return ""
