"""Proof of which data a run was trained on: SHA-256 of the file, or of a hub data set's rows."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable

from lorafit.data.records import Record
from lorafit.data.sources import FileSource, readable
from lorafit.errors import DataError

_CHUNK_BYTES = 1024 * 1024


def hash_file(source: FileSource, tell: Callable[[float], None] = lambda share: None) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; `tell` hears the share that is done.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    size = max(1, file_state(source)[1])
    done = 0
    with readable(source.name), source.path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            tell(done / size)
    return digest.hexdigest()


def hash_records(records: Iterable[Record]) -> str:
    """Return the SHA-256 of what records say, in order; where they came from does not count."""
    digest = hashlib.sha256()
    for record in records:
        said = [record.prompt, record.completion, record.messages, record.label]
        digest.update(json.dumps(said).encode() + b"\n")
    return digest.hexdigest()


def file_state(source: FileSource) -> tuple[int, int, int]:
    """Return what changes when a file is written: inode, size and time of change."""
    with readable(source.name):
        status = os.stat(source.path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def verify_unchanged(source: FileSource, before: tuple[int, int, int]) -> None:
    """Check that nobody wrote the file while it was read.

    Raises:
        DataError: the file changed, so rows and fingerprint may not belong together.
    """
    if file_state(source) != before:
        raise DataError(
            "the file changed while it was read",
            where=source.name,
            hint="wait until it is written completely and run the command again",
        )
