"""The run folder: whose it is, and where in a run it stands."""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import CheckpointError, StorageError, UsageError
from lorafit.text import excerpt
from lorafit.training.checkpoint import (
    Checkpoint,
    newest_verified,
    require_run,
    verify_checkpoint,
)
from lorafit.training.fingerprint import fingerprint_of, require_same_run
from lorafit.training.plan import RunPlan
from lorafit.training.state import STATE_FILES

RUN_FILE = "run.json"


@dataclass(frozen=True)
class Start:
    """Where a run begins: afresh, from a checkpoint, or not at all as it is complete."""

    run_id: str
    checkpoint: Checkpoint | None
    is_complete: bool
    reason: str


def check_folder(plan: RunPlan) -> None:
    """Refuse an output folder that cannot be used, before anything expensive happens.

    Raises:
        StorageError: the folder is a file, holds something else, or cannot be written.
        UsageError: it is also the folder of the base model or of the data.
    """
    run_dir = Path(plan.settings.output_dir)
    try:
        _check_overlap(plan, run_dir)
        _check_contents(run_dir)
    except (OSError, RuntimeError) as problem:  # pathlib's word for a loop of symbolic links
        raise _unusable(run_dir, problem) from None


def _check_overlap(plan: RunPlan, run_dir: Path) -> None:
    resolved = run_dir.resolve()
    if resolved == plan.source.path.resolve():
        raise UsageError(
            f"--output-dir {run_dir} is the folder of the base model, which would be mixed up",
            hint="choose another --output-dir, such as outputs/my-run",
        )
    data = Path(str(plan.settings.data))
    if data.exists() and resolved == data.resolve().parent and not is_run(run_dir):
        raise UsageError(
            f"--output-dir {run_dir} is the folder of the training data, which would be mixed up",
            hint="choose another --output-dir, such as outputs/my-run",
        )


def _check_contents(run_dir: Path) -> None:
    if run_dir.is_dir():
        if not is_run(run_dir):
            found = sorted(entry.name for entry in run_dir.iterdir())
            if found:
                raise StorageError(
                    f"the folder holds something else: {excerpt(', '.join(found[:5]))}",
                    where=str(run_dir),
                    hint="choose a new or empty --output-dir; nothing was changed",
                )
        if not os.access(run_dir, os.W_OK | os.X_OK):
            raise StorageError("the folder cannot be written to", where=str(run_dir))
        return
    if run_dir.exists() or run_dir.is_symlink():
        raise StorageError(
            "this is not a folder, and a run needs one",
            where=str(run_dir),
            hint="choose another --output-dir",
        )
    parent = run_dir.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"no folder can be made in {parent}", where=str(run_dir))


def _unusable(run_dir: Path, problem: OSError | RuntimeError) -> StorageError:
    return StorageError(
        f"the folder cannot be used: {getattr(problem, 'strerror', None) or problem}",
        where=excerpt(repr(str(run_dir))),
        hint="choose another --output-dir",
    )


def is_run(run_dir: Path) -> bool:
    """Return whether lorafit wrote this folder."""
    return (run_dir / RUN_FILE).is_file()


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return a run's run.json.

    Raises:
        CheckpointError: there is none that can be read.
    """
    path = run_dir / RUN_FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        str(record["run_id"]), dict(record["fingerprint"]), str(record["status"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(
            "cannot be read as the record of a run",
            where=str(path),
            hint="choose another --output-dir to start afresh",
        ) from None
    return record


def find_start(plan: RunPlan, resume: str | None) -> tuple[Start, list[str]]:
    """Return where the run begins, and notes about checkpoints that were passed over.

    An unfinished run in the folder is continued from its newest whole checkpoint.

    Raises:
        CheckpointError: the folder or `--resume` names a run with other settings, or a damaged
            checkpoint, or there is nothing to resume.
    """
    run_dir = Path(plan.settings.output_dir)
    if resume not in (None, "auto"):
        return _resume_from(plan, Path(str(resume))), []
    if not is_run(run_dir):
        return Start(uuid.uuid4().hex, None, False, "a new run"), []
    record = read_run(run_dir)
    require_same_run(record["fingerprint"], fingerprint_of(plan), str(run_dir))
    if record["status"] == "completed":
        return Start(record["run_id"], None, True, "this run is already complete"), []
    checkpoint, skipped = newest_verified(run_dir, record["run_id"], STATE_FILES)
    notes = [f"checkpoint passed over: {reason}" for reason in skipped]
    if checkpoint is None:
        reason = "an earlier attempt left no checkpoint: starting again from step 0"
        return Start(record["run_id"], None, False, reason), notes
    reason = f"continuing from {checkpoint.folder.name}, the newest whole checkpoint"
    return Start(record["run_id"], checkpoint, False, reason), notes


def _resume_from(plan: RunPlan, folder: Path) -> Start:
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint folder {excerpt(str(folder))}",
            hint="name a checkpoint-N folder of a run, or --resume auto",
        )
    checkpoint = verify_checkpoint(folder, STATE_FILES)
    run_dir = Path(plan.settings.output_dir)
    if folder.resolve().parent != run_dir.resolve():
        raise CheckpointError(
            f"{folder} lies outside of --output-dir {run_dir}",
            hint=f"continue the run in its own folder: --output-dir {folder.parent}",
        )
    record = read_run(run_dir)
    require_run(checkpoint, record["run_id"])
    require_same_run(record["fingerprint"], fingerprint_of(plan), str(folder))
    reason = f"continuing from {folder.name}, as asked with --resume"
    return Start(checkpoint.run_id, checkpoint, False, reason)
