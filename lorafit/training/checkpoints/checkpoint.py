"""Checkpoints: complete or invisible.

A checkpoint is written into `.staging-checkpoint-N` beside its target, every file is flushed, a
manifest with sizes and SHA-256 is written last, and one rename makes it `checkpoint-N`. What has
no manifest, or does not match it, is never resumed from and never deleted.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafit.errors import CheckpointError, StorageError
from lorafit.files import (
    free_bytes,
    plain_os_errors,
    sha256_of,
    sync_file,
    sync_folder,
    write_json,
)
from lorafit.text import excerpt
from lorafit.units import format_bytes

MANIFEST_FILE = "manifest.json"
STAGING_PREFIX = ".staging-"
ASIDE_PREFIX = "set-aside-"
SCHEMA_VERSION = 1
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAVE_REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or have your quota raised",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "make the disk writable again (the kernel's log says why it is not)",
    errno.EACCES: "let this user write there",
    errno.EPERM: "let this user write there",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that announces itself by a manifest."""

    step: int
    folder: Path
    run_id: str
    files: dict[str, dict[str, Any]]
    """File name to `{"bytes", "sha256"}`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else the run knew when it saved: `loss`, `validation_loss`, `versions`, `device`."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its files, without the manifest."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    @property
    def validation_loss(self) -> float | None:
        """Validation loss that was measured at its step, if one was."""
        value = self.facts.get("validation_loss")
        return float(value) if isinstance(value, int | float) else None


def write_checkpoint(
    run_dir: Path,
    step: int,
    run_id: str,
    write_files: Callable[[Path], None],
    facts: Mapping[str, Any] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Path:
    """Let `write_files` fill a staging folder, then publish it as `checkpoint-<step>`.

    A whole checkpoint of this run and step that lies there already is kept; a damaged one is
    replaced; a folder of that name that is not this run's is renamed, never deleted, and
    `on_note` is told its new name.

    Raises:
        StorageError: the disk is full or the folder cannot be written; nothing is published.
    """
    target = run_dir / f"checkpoint-{step}"
    staging = run_dir / f"{STAGING_PREFIX}{target.name}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        with plain_os_errors():
            write_files(staging)
        files = {}
        for path in sorted(staging.iterdir()):
            sync_file(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        document = {
            "schema_version": SCHEMA_VERSION,
            "step": step,
            "run_id": run_id,
            "facts": dict(facts or {}),
            "files": files,
        }
        write_json(staging / MANIFEST_FILE, document)
        _publish(staging, target, run_id, on_note)
    except OSError as problem:
        failure = _save_error(run_dir, staging, step, problem)
        shutil.rmtree(staging, ignore_errors=True)
        raise failure from problem
    return target


def _publish(
    staging: Path, target: Path, run_id: str, on_note: Callable[[str], None] | None
) -> None:
    replaced = None
    if os.path.lexists(target):
        own = _own_checkpoint(target, run_id)
        if own is not None and _is_whole(own):
            # A resumed run that repeats this step, which gives the same bytes.
            shutil.rmtree(staging)
            return
        if own is not None:
            replaced = target.with_name(f"{STAGING_PREFIX}replaced-{target.name}")
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(target, replaced)
        else:
            moved = set_aside(target)
            if on_note is not None:
                on_note(f"{target.name} was not this run's: it is now {moved.name}")
    os.replace(staging, target)
    sync_folder(target.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def _own_checkpoint(folder: Path, run_id: str) -> Checkpoint | None:
    try:
        found = read_manifest(folder)
    except (CheckpointError, StorageError):
        return None
    return found if found.run_id == run_id else None


def _is_whole(checkpoint: Checkpoint) -> bool:
    try:
        verify_checkpoint(checkpoint.folder)
    except CheckpointError:
        return False
    return True


def set_aside(folder: Path) -> Path:
    """Rename what stands in the way to `set-aside-…`; return the new path."""
    new = folder.with_name(f"{ASIDE_PREFIX}{folder.name}")
    number = 1
    while os.path.lexists(new):
        number += 1
        new = folder.with_name(f"{ASIDE_PREFIX}{folder.name}-{number}")
    os.replace(folder, new)
    return new


def _save_error(run_dir: Path, staging: Path, step: int, problem: OSError) -> StorageError:
    reason = problem.strerror or str(problem)
    if not run_dir.is_dir():
        return vanished(run_dir, f"the checkpoint of step {step} could not be written")
    earlier = list_checkpoints(run_dir)
    if problem.errno in _FULL:
        # What was written of this one, where no earlier one tells the whole size.
        sizes = [checkpoint.num_bytes for checkpoint in earlier]
        sizes.append(sum(path.stat().st_size for path in staging.glob("*")))
        needed, free = format_bytes(max(sizes)), format_bytes(free_bytes(run_dir))
        reason += f"; it takes {needed} or more, and {free} are free"
    return StorageError(
        f"the checkpoint of step {step} could not be written: {reason}",
        where=str(run_dir),
        hint=("earlier checkpoints are intact: " if earlier else "")
        + _SAVE_REMEDIES.get(problem.errno or 0, "look after the disk")
        + ", then run the same command again",
    )


def vanished(run_dir: Path, consequence: str) -> StorageError:
    """Return the error of a run folder that was deleted or unmounted under the run."""
    return StorageError(
        f"the run folder vanished: {consequence}",
        where=str(run_dir),
        hint="it was deleted, moved or unmounted while the run went on; it is not made again",
    )


def read_manifest(folder: Path) -> Checkpoint:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: there is none, or it is not one of ours.
        StorageError: it may not be read.
    """
    path = folder / MANIFEST_FILE
    with _readable(path):
        present = path.is_file()
        text = path.read_bytes() if present else b""
    if not present:
        raise CheckpointError(
            "has no manifest, so lorafit did not write it or never finished it",
            where=str(folder),
            hint="a checkpoint of transformers' Trainer with PEFT: --import-hf-checkpoint FOLDER "
            "begins a new run from it",
        )
    try:
        document = json.loads(text.decode("utf-8"))
        newer = document["schema_version"] > SCHEMA_VERSION
        step, run_id, files = int(document["step"]), str(document["run_id"]), document["files"]
        sizes = {str(name): int(entry["bytes"]) for name, entry in files.items()}
        facts = dict(document.get("facts", {}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("is not a manifest", where=str(path)) from None
    if newer:
        raise CheckpointError("was written by a newer lorafit: upgrade", where=str(path))
    strange = [name for name in sizes if Path(name).name != name or name in ("", ".", "..")]
    if strange:
        raise CheckpointError(
            f"names {excerpt(repr(strange[0]))}, which is not a plain file name", where=str(path)
        )
    return Checkpoint(step, folder, run_id, files, facts)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as problem:
        raise StorageError(
            f"cannot be read: {problem.strerror}",
            where=str(problem.filename or path),
            hint="make it readable for this user (chmod, chown)",
        ) from None
    except OSError as problem:
        raise CheckpointError(
            f"cannot be read: {problem.strerror or problem}", where=str(path)
        ) from None


def verify_checkpoint(folder: Path, required: Iterable[str] = ()) -> Checkpoint:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing, cut off or changed, or the manifest does not vouch for
            one that is `required`; names it.
    """
    checkpoint = read_manifest(folder)
    for name in required:
        if name not in checkpoint.files:
            raise CheckpointError("is not in the manifest", where=str(folder / name))
    for name, entry in checkpoint.files.items():
        with _readable(folder / name):
            _verify_file(folder / name, entry)
    return checkpoint


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    if path.is_symlink() or not path.is_file():
        raise CheckpointError("is missing or not a regular file", where=str(path))
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise CheckpointError(
            f"has {size:,} bytes, but {entry['bytes']:,} were written", where=str(path)
        )
    if sha256_of(path) != entry.get("sha256"):
        raise CheckpointError("has changed since it was written", where=str(path))


def list_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run folder that have a manifest, oldest step first."""
    found = []
    for folder in run_dir.glob("checkpoint-*"):
        try:
            found.append(read_manifest(folder))
        except CheckpointError:
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest_verified(
    run_dir: Path, run_id: str, required: Iterable[str] = ()
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint of a run, and why newer ones were passed over."""
    skipped: list[str] = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            require_run(checkpoint, run_id)
            return verify_checkpoint(checkpoint.folder, required), skipped
        except CheckpointError as problem:
            skipped.append(str(problem))
    return None, skipped


def require_run(checkpoint: Checkpoint, run_id: str) -> None:
    """Refuse a checkpoint that another run wrote.

    Raises:
        CheckpointError: it is another run's.
    """
    if checkpoint.run_id != run_id:
        raise CheckpointError(
            f"belongs to another run ({excerpt(checkpoint.run_id)})", where=str(checkpoint.folder)
        )


def sweep_staging(run_dir: Path) -> list[Path]:
    """Remove what a killed save left behind; return it."""
    left = [path for path in run_dir.glob(f"{STAGING_PREFIX}*") if not path.is_symlink()]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return left


def require_disk_space(run_dir: Path, needed_bytes: int, available_bytes: int) -> None:
    """Refuse to start a run that would fill the disk.

    Raises:
        StorageError: less is free than the kept checkpoints and the adapter take.
    """
    if available_bytes < needed_bytes:
        raise StorageError(
            f"checkpoints and adapter need {format_bytes(needed_bytes)}, but only "
            f"{format_bytes(available_bytes)} are free",
            where=str(run_dir),
            hint="free space, choose another --output-dir, or lower --save-total-limit",
        )
