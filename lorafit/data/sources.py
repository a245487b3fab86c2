"""Decides what the person named as data: a local file or a hub data set; nothing is read yet."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorafit.data.source_hints import (
    NEEDED,
    folder_hint,
    missing_hint,
    pattern_hint,
    several_files,
    several_hint,
    suffix_hint,
    unpack_hint,
    url_hint,
)
from lorafit.errors import DataError, UsageError
from lorafit.text import escape_control
from lorafit.units import MIB

FileFormat = Literal["jsonl", "json", "csv", "tsv", "parquet"]

FORMATS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

STORED_FROM_BYTES = 64 * MIB
"""Files from this size on are large; to tokenize smaller ones takes seconds."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?::[\w.-]{1,95})?", re.ASCII)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

# First bytes of files that are often renamed to a name that lorafit reads.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"(\xb5/\xfd", "a zstandard file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"SQLite format 3", "an SQLite database"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"\xff\xfe", "UTF-16 text, not UTF-8"),
    (b"\xfe\xff", "UTF-16 text, not UTF-8"),
)
_TAR_MAGIC_OFFSET = 257


@dataclass(frozen=True)
class FileSource:
    """A regular file whose first bytes agree with its name."""

    path: Path
    format: FileFormat

    @property
    def name(self) -> str:
        """The path as the person gave it, safe to print."""
        return escape_control(str(self.path))


@dataclass(frozen=True)
class HubSource:
    """A data set on the Hugging Face hub, perhaps one of its configurations."""

    repository: str
    configuration: str | None
    split: str

    @property
    def name(self) -> str:
        """Repository and split, such as `owner/name[train]`."""
        configuration = f":{self.configuration}" if self.configuration else ""
        return f"{self.repository}{configuration}[{self.split}]"


def resolve_source(data: str, split: str = "train") -> FileSource | HubSource:
    """Return what `data` names: a file if it looks or exists like one, else a hub id.

    `owner/name` is a hub id unless such a path exists, and `owner/name:configuration` picks one
    configuration of it. Anything that ends in a known suffix, or begins with `.`, `/` or `~`, is
    a path.

    Raises:
        UsageError: the value is empty, a URL or a glob pattern.
        DataError: the file is missing, unreadable, not a regular file, or not what its name says.
    """
    _refuse_non_paths(data)
    path = Path(data).expanduser() if data.startswith("~") else Path(data)
    looks_like_path = data.startswith((".", "/", "~")) or path.suffix.lower() in FORMATS
    if not looks_like_path and _HUB_ID.fullmatch(data) and not os.path.lexists(data):
        repository, _, configuration = data.partition(":")
        return HubSource(repository, configuration or None, split)
    return _file_source(path)


def _refuse_non_paths(data: str) -> None:
    if not data.strip():
        raise UsageError(
            "the name of the training data is empty", hint="give a file: --data my_rows.jsonl"
        )
    if _URL.match(data):
        # The address is not repeated: it may hold a password.
        raise UsageError(
            "training data is read from local files and the hub, not from URLs",
            hint=url_hint(data),
        )
    if data == "-" and not os.path.lexists(data):
        raise UsageError(
            "training data is not read from standard input: rows are read more than once",
            hint="write them to a file first: ... > my_rows.jsonl, then: --data my_rows.jsonl",
        )
    if re.search(r"[*?\[\]]", data) and not os.path.lexists(data):
        raise UsageError(
            f"{escape_control(data)!r} is a pattern; one file is needed",
            hint=escape_control(pattern_hint(data)),
        )
    names = several_files(data)
    if names is not None and not os.path.lexists(data):
        raise UsageError(
            f"{escape_control(data)!r} names {len(names)} files; one is needed",
            hint=escape_control(several_hint(names)),
        )


def _file_source(path: Path) -> FileSource:
    name = escape_control(str(path))
    with readable(name):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise _missing(path) from None
        except ValueError as error:  # a NUL in the name
            raise DataError(f"not a usable file name: {error}", where=name) from None
        if not stat.S_ISREG(mode):
            raise DataError(
                f"not a regular file but {_kind_of(mode)}", where=name, hint=_folder_hint(path)
            )
        file_format = FORMATS.get(path.suffix.lower())
        with path.open("rb") as file:
            head = file.read(512)
    _check_magic(path, head, file_format)
    if file_format is None:
        raise DataError(
            f"the suffix {path.suffix or '(none)'} is not one of {', '.join(FORMATS)}, so how to "
            "read it is unknown",
            where=name,
            hint=escape_control(suffix_hint(path)),
        )
    return FileSource(path, file_format)


def is_large(source: FileSource) -> bool:
    """Return whether the rows of a file are stored and mapped, and not held in memory.

    A .json array is one text that has to be held anyway; it has a limit of its own.

    Raises:
        DataError: the file cannot be looked at.
    """
    with readable(source.name):
        return source.format != "json" and source.path.stat().st_size >= STORED_FROM_BYTES


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Translate the system's errors while the file called `name` is looked at or read.

    Raises:
        DataError: the system refuses the file.
    """
    try:
        yield
    except PermissionError:
        raise DataError(
            "no permission to read this file", where=name, hint=f"chmod u+r '{name}'"
        ) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=name) from None


def _missing(path: Path) -> DataError:
    folder = path.parent
    try:
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else None
    except OSError:
        names = []
    if names is None:
        message = f"no such file: the folder {escape_control(str(folder))} does not exist"
        return DataError(message, where=escape_control(str(path)), hint="check the path")
    hint = escape_control(missing_hint(path, names))
    return DataError("no such file", where=escape_control(str(path)), hint=hint)


def _kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _folder_hint(path: Path) -> str:
    if not path.is_dir():
        return "rows are read more than once: write them to a file first"
    return escape_control(folder_hint(path))


def _check_magic(path: Path, head: bytes, file_format: FileFormat | None) -> None:
    name = escape_control(str(path))
    found = next((what for magic, what in _MAGIC if head.startswith(magic)), None)
    if head[_TAR_MAGIC_OFFSET : _TAR_MAGIC_OFFSET + 5] == b"ustar":
        found = "a tar archive"
    if found == "a Parquet file" and file_format == "parquet":
        return
    if found is None and file_format == "parquet" and head:
        found = "not a Parquet file: it does not begin with PAR1"
        raise DataError(f"this is {found}", where=name, hint="rename the file after what it holds")
    if found is None:
        return
    surprise = ", whatever its name says" if file_format else ", which is not read as it is"
    hint = escape_control(_conversion_hint(path, found))
    raise DataError(f"this is {found}{surprise}", where=name, hint=hint)


def _conversion_hint(path: Path, found: str) -> str:
    if "UTF-16" in found:
        return "convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW"
    if "LFS" in found:
        return "fetch the file: git lfs pull"
    if "Parquet" in found:
        return "rename it to .parquet"
    return unpack_hint(path, found) or f"convert it first to {NEEDED}"
