"""Which checkpoints of a run stay: the newest, and the best by validation loss."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lorafit.errors import CheckpointError
from lorafit.training.checkpoints.checkpoint import (
    STAGING_PREFIX,
    Checkpoint,
    list_checkpoints,
    set_aside,
    verify_checkpoint,
)


class Retention(NamedTuple):
    """What becomes of one checkpoint, and why."""

    checkpoint: Checkpoint
    is_kept: bool
    reason: str


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the lowest validation loss, the earlier of two equal ones.

    None where validation never fell on a step that was saved.
    """
    measured = [
        (c.validation_loss, c.step, c) for c in checkpoints if c.validation_loss is not None
    ]
    return min(measured, key=lambda entry: entry[:2])[2] if measured else None


def plan_retention(own: Sequence[Checkpoint], keep: int) -> list[Retention]:
    """Return what `save_total_limit = keep` does to a run's own checkpoints, oldest step first.

    The newest `keep` stay, and the best one stays beside them.
    """
    ordered = sorted(own, key=lambda checkpoint: checkpoint.step)
    newest = {checkpoint.folder for checkpoint in ordered[-keep:]}
    best = best_checkpoint(ordered)
    plan = []
    for checkpoint in ordered:
        is_best = best is not None and checkpoint.folder == best.folder
        reasons = [
            *(["best validation loss"] if is_best else []),
            *([f"newest {keep}"] if checkpoint.folder in newest else []),
        ]
        plan.append(
            Retention(
                checkpoint, bool(reasons), ", ".join(reasons) or f"older than the newest {keep}"
            )
        )
    return plan


def own_checkpoints(run_dir: Path, run_id: str) -> list[Checkpoint]:
    """Return the checkpoints that this run wrote, oldest step first."""
    return [found for found in list_checkpoints(run_dir) if found.run_id == run_id]


def prune_checkpoints(run_dir: Path, keep: int, run_id: str) -> list[Path]:
    """Delete this run's checkpoints beyond `keep` and the best one; return what was deleted.

    Nothing is deleted while the newest one does not verify.
    """
    own = own_checkpoints(run_dir, run_id)
    surplus = [entry.checkpoint for entry in plan_retention(own, keep) if not entry.is_kept]
    if not surplus:
        return []
    try:
        verify_checkpoint(own[-1].folder)
    except CheckpointError:
        return []
    for checkpoint in surplus:
        # Renamed first: a kill in the middle of the removal leaves nothing that looks whole.
        doomed = run_dir / f"{STAGING_PREFIX}removed-{checkpoint.folder.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(checkpoint.folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return [checkpoint.folder for checkpoint in surplus]


def set_later_aside(run_dir: Path, run_id: str, step: int) -> list[Path]:
    """Rename this run's checkpoints after `step`, so that another course cannot mix with theirs."""
    return [set_aside(c.folder) for c in own_checkpoints(run_dir, run_id) if c.step > step]
