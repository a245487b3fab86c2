"""What the output folder's file system can do, and the limits of this user."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.probe import Probe
from lorafit.files import sync_file, sync_folder

_LONG_NAME = 200
"""Characters; lorafit's own names are shorter than 64, data sets bring longer ones."""
_MIN_FILES = 256
_MIN_PROCESSES = 64


@check(
    "disk.semantics",
    "System",
    "File system",
    affects="a checkpoint is published by one rename after a flush: both have to work",
)
def file_system(probe: Probe) -> Outcome:
    """Try what saving relies on, in a folder of its own where runs are written."""
    existing = nearest_folder(probe.output_dir)
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".lorafit-doctor-") as name:
            failed = [title for title, trial in _TRIALS.items() if not _works(trial, Path(name))]
            ignores_case = _ignores_case(Path(name))
    except OSError as problem:
        return skip(f"no folder can be made in {existing}: {problem.strerror}; see disk.output")
    case = ", upper and lower case are the same" if ignores_case else ""
    if not failed:
        return ok(f"{', '.join(_TRIALS)} work in {existing}{case}")
    return error(
        f"in {existing} there is no {', no '.join(failed)}",
        "write runs to a local disk",
        "lorafit train --output-dir /path/on/a/local/disk …",
        measured=f"{len(_TRIALS) - len(failed)} of {len(_TRIALS)} work",
    )


def nearest_folder(folder: Path) -> Path:
    """Return `folder`, or the nearest one above it that exists."""
    existing = folder.expanduser().absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing


def _try_flush(folder: Path) -> None:
    file = folder / "flushed"
    file.write_bytes(b"x")
    sync_file(file)
    sync_folder(folder)


def _try_rename(folder: Path) -> None:
    staging, target = folder / "staging", folder / "target"
    staging.write_text("new", encoding="utf-8")
    target.write_text("old", encoding="utf-8")
    staging.replace(target)
    filled, published = folder / ".staging-checkpoint", folder / "checkpoint"
    filled.mkdir()
    (filled / "manifest.json").write_text("{}", encoding="utf-8")
    filled.rename(published)
    if target.read_text(encoding="utf-8") != "new" or not (published / "manifest.json").is_file():
        raise OSError(errno.EIO, "a rename did not replace its target")


def _try_lock(folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with (folder / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _try_long_name(folder: Path) -> None:
    (folder / ("n" * _LONG_NAME)).touch()


_TRIALS: dict[str, Callable[[Path], None]] = {
    "flush": _try_flush,
    "atomic rename": _try_rename,
    "file lock": _try_lock,
    "long name": _try_long_name,
}


def _works(trial: Callable[[Path], None], folder: Path) -> bool:
    try:
        trial(folder)
    except OSError:
        return False
    return True


def _ignores_case(folder: Path) -> bool:
    (folder / "case").touch()
    return (folder / "CASE").exists()


@check(
    "limits.files",
    "System",
    "Limits of this user",
    affects="data workers and sharded weights fail with `Too many open files`",
)
def user_limits(probe: Probe) -> Outcome:
    """Check how many files and processes this user may have open."""
    try:
        import resource
    except ImportError:
        return skip("this system has no such limits")
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    processes = resource.getrlimit(getattr(resource, "RLIMIT_NPROC", resource.RLIMIT_NOFILE))[0]
    measured = f"{_limit(files)} open files, {_limit(processes)} processes"
    required = f"{_MIN_FILES} files, {_MIN_PROCESSES} processes"
    if 0 <= files < _MIN_FILES:
        return warn(
            measured,
            "raise the limit in this shell",
            "ulimit -n 4096",
            measured=measured,
            required=required,
        )
    if 0 <= processes < _MIN_PROCESSES:
        return warn(
            measured,
            "raise the limit in this shell",
            "ulimit -u 4096",
            measured=measured,
            required=required,
        )
    return ok(measured, measured=measured, required=required)


def _limit(number: int) -> str:
    # RLIM_INFINITY is -1, or the largest number that the type holds.
    return "unlimited" if number < 0 or number >= 2**62 else f"{number:,}"


def owner_only(path: Path) -> bool:
    """Return whether nobody but the owner may read a file."""
    return os.name != "posix" or path.stat().st_mode & 0o077 == 0
