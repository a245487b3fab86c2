"""One process a run folder.

The lock is the operating system's, on an open file: it ends with the process however that ends,
so that no kill leaves a folder locked. The file only says who holds it.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from lorafit.errors import StorageError
from lorafit.text import excerpt

LOCK_FILE = ".lorafit.lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """Context that holds a run folder, made where it is not there yet.

    A folder that was made and stays empty is removed again: a run that is refused leaves nothing.
    POSIX record locks are used, as they work on network file systems and, unlike flock's, are not
    inherited by data loader processes that may outlive a killed run.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / LOCK_FILE
        self._descriptor: int | None = None
        self._made: list[Path] = []
        self.note: str | None = None
        """What a person should know: a lock that was taken over, or one that cannot be had."""

    def __enter__(self) -> "RunLock":
        """Take the lock.

        Raises:
            StorageError: another process holds it, or the folder cannot be made.
        """
        try:
            self._make_folder()
            self._descriptor = self._acquire()
        except StorageError:
            self._remove_made()
            raise
        except OSError as problem:
            self._remove_made()
            raise StorageError(
                f"the run folder cannot be locked: {problem.strerror or problem}",
                where=str(self._run_dir),
                hint="choose another --output-dir",
            ) from problem
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            # Removed while it is still held: whoever waits for it finds another file, or none.
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None
        self._remove_made()

    def _make_folder(self) -> None:
        missing = []
        folder = self._run_dir
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was quicker
                path.mkdir()
                self._made.append(path)

    def _remove_made(self) -> None:
        with contextlib.suppress(OSError):  # it holds a run now
            for folder in reversed(self._made):
                folder.rmdir()

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                holder = _read_holder(descriptor)
                os.close(descriptor)
                if problem.errno in _UNSUPPORTED:
                    self.note = "this file system has no locks: a second run is not kept out"
                    return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                raise self._refusal(holder) from None
            if _is_file_of(descriptor, self._path):
                break
            os.close(descriptor)  # its holder removed it between our open and our lock
        before = _read_holder(descriptor)
        if before:
            self.note = f"the lock of {_name(before)}, which is gone, was taken over"
        _write_holder(descriptor)
        return descriptor

    def _refusal(self, holder: dict[str, object]) -> StorageError:
        return StorageError(
            f"the run is locked by {_name(holder)}",
            where=str(self._run_dir),
            hint="wait for it, stop it, or choose another --output-dir; both would write the same "
            "files",
        )


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _read_holder(descriptor: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_holder(descriptor: int) -> None:
    holder = {"pid": os.getpid(), "host": socket.gethostname()}
    # A full disk costs the name in the message, not the lock.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _name(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    pid, host = (excerpt(str(holder.get(key, "unknown"))) for key in ("pid", "host"))
    return f"pid {pid} on host {host}"
