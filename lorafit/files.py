"""Files: written so that a reader never sees half of one, and refused with a reason."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorafit.errors import StorageError, UsageError


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON beside `path`, flush it to the disk, and move it into place."""
    staging = path.with_name(f".staging-{path.name}")
    with staging.open("w", encoding="utf-8") as stream:
        json.dump(document, stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(staging, path)
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write text to a file of the cache, whole or not at all; its folder is made.

    Each writer has a staging name of its own: two runs may end at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def storage_errors(message: str, where: Path, hint: str | None = None) -> Iterator[None]:
    """Context in which an OSError becomes a StorageError that begins with `message`.

    Raises:
        StorageError: of `where`, with the system's reason and the hint.
    """
    try:
        yield
    except OSError as problem:
        reason = problem.strerror or problem
        raise StorageError(f"{message}: {reason}", where=str(where), hint=hint) from problem


@contextlib.contextmanager
def plain_os_errors() -> Iterator[None]:
    """Turn safetensors' own exception for a failed write into the OSError that it was."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as problem:
        found = re.search(r"\(os error (\d+)\)", str(problem))
        if found is None:
            raise
        number = int(found.group(1))
        raise OSError(number, os.strerror(number)) from problem


def require_drawable(path: Path, suffixes: tuple[str, ...], *, flag: str, example: str) -> None:
    """Refuse a file that cannot be drawn into, before anything is computed.

    Args:
        path: the file.
        suffixes: those of which one says what to draw.
        flag: the option that names the file.
        example: a name that would do.

    Raises:
        UsageError: it has none of the suffixes, or matplotlib is not installed.
        StorageError: its folder is missing, or it is a folder itself.
    """
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{path.name!r} ends with none of {', '.join(suffixes)}, which say what to draw",
            where=flag,
            hint=f"{flag} {example}",
        )
    if path.is_dir():
        raise StorageError("is a folder, not a file to write", where=str(path))
    if not path.absolute().parent.is_dir():
        raise StorageError(
            f"there is no folder {path.parent}", where=str(path), hint=f"mkdir -p {path.parent}"
        )
    try:
        import matplotlib  # noqa: F401  # asked for only to see whether it is there
    except ImportError:
        raise UsageError(
            "drawing needs matplotlib, which is not installed",
            where=flag,
            hint='pip install "lorafit[plots]"',
        ) from None


def sync_file(path: Path) -> None:
    """Flush a file's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename in it survives a power loss."""
    sync_file(path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return lorafit's folder in the user's cache; the variable LORAFIT_CACHE_DIR overrides it."""
    override = os.environ.get("LORAFIT_CACHE_DIR")
    if override:
        return Path(override)
    from platformdirs import user_cache_path

    return user_cache_path("lorafit")


def free_bytes(path: Path) -> int:
    """Return the bytes free for this user on the file system that `path` lies or will lie on."""
    existing = path.absolute()
    # os.path: a name that no file system takes does not exist, where Path.exists would raise.
    while not os.path.exists(existing):
        existing = existing.parent
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize
