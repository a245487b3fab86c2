"""Checkpoints: complete or invisible.

A checkpoint is written into `.staging-checkpoint-N` beside its target, every file is flushed, a
manifest with sizes and SHA-256 is written last, and one rename makes it `checkpoint-N`. What has
no manifest, or does not match it, is never resumed from and never deleted.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import CheckpointError, StorageError
from lorafit.files import plain_os_errors, sha256_of, sync_file, sync_folder, write_json
from lorafit.text import excerpt
from lorafit.units import format_bytes

MANIFEST_FILE = "manifest.json"
STAGING_PREFIX = ".staging-"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that announces itself by a manifest."""

    step: int
    folder: Path
    run_id: str
    files: dict[str, dict[str, Any]]
    """File name to `{"bytes", "sha256"}`."""


def write_checkpoint(
    run_dir: Path, step: int, run_id: str, write_files: Callable[[Path], None]
) -> Path:
    """Let `write_files` fill a staging folder, then publish it as `checkpoint-<step>`.

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
            "files": files,
        }
        write_json(staging / MANIFEST_FILE, document)
        if target.exists():
            # Only a resumed run gets here: it repeats the step and replaces its own checkpoint.
            shutil.rmtree(target)
        os.replace(staging, target)
        sync_folder(run_dir)
    except OSError as problem:
        shutil.rmtree(staging, ignore_errors=True)
        raise StorageError(
            f"the checkpoint of step {step} could not be written: {problem.strerror or problem}",
            where=str(run_dir),
            hint="earlier checkpoints are intact: free space, then run the same command again",
        ) from problem
    return target


def read_manifest(folder: Path) -> Checkpoint:
    """Read a checkpoint's manifest.

    Raises:
        CheckpointError: there is none, or it is not one of ours.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise CheckpointError(
            "has no manifest, so lorafit did not write it or never finished it", where=str(folder)
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        newer = document["schema_version"] > SCHEMA_VERSION
        step, run_id, files = int(document["step"]), str(document["run_id"]), document["files"]
        sizes = {str(name): int(entry["bytes"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("is not a manifest", where=str(path)) from None
    if newer:
        raise CheckpointError("was written by a newer lorafit: upgrade", where=str(path))
    strange = [name for name in sizes if Path(name).name != name or name in ("", ".", "..")]
    if strange:
        raise CheckpointError(
            f"names {excerpt(repr(strange[0]))}, which is not a plain file name", where=str(path)
        )
    return Checkpoint(step, folder, run_id, files)


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
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise CheckpointError("is missing or not a regular file", where=str(path))
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"has {size:,} bytes, but {entry['bytes']:,} were written", where=str(path)
            )
        if sha256_of(path) != entry.get("sha256"):
            raise CheckpointError("has changed since it was written", where=str(path))
    return checkpoint


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


def prune_checkpoints(run_dir: Path, keep: int, run_id: str) -> list[Path]:
    """Delete the oldest checkpoints of this run beyond `keep`; return what was deleted."""
    own = [c for c in list_checkpoints(run_dir) if c.run_id == run_id]
    surplus = own[: max(0, len(own) - keep)]
    for checkpoint in surplus:
        # Renamed first: a kill in the middle of the removal leaves nothing that looks whole.
        doomed = run_dir / f"{STAGING_PREFIX}removed-{checkpoint.folder.name}"
        os.replace(checkpoint.folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return [checkpoint.folder for checkpoint in surplus]


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
