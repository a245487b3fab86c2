"""The hashes that the hub's client records beside what it downloads, and their verification.

In the hub's cache a snapshot's file is a link to a blob that is named by its hash. In a folder of
`hf download --local-dir`, `.cache/huggingface/download/<name>.metadata` has commit and hash as
its first two lines. Large files go by SHA-256, small ones by the SHA-1 of git's blobs.
"""

import hashlib
import re
from pathlib import Path

from lorafit.files import sha256_of

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def recorded_hash(file: Path) -> str | None:
    """Return the SHA-256 (64 digits) or git SHA-1 (40) that was recorded for a file, or None."""
    if file.is_symlink() and _HASH.fullmatch(name := file.resolve().name):
        return name
    record = file.parent / ".cache/huggingface/download" / f"{file.name}.metadata"
    if not record.is_file():
        return None
    lines = record.read_text(encoding="utf-8", errors="replace").splitlines()
    found = lines[1].strip().strip('"') if len(lines) > 1 else ""
    return found if _HASH.fullmatch(found) else None


def verify_hash(file: Path, recorded: str) -> bool:
    """Return whether a file's content has the recorded hash."""
    if len(recorded) == 64:
        return sha256_of(file) == recorded
    content = file.read_bytes()
    # What git names a blob by (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
    blob = b"blob %d\0" % len(content) + content
    return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == recorded
