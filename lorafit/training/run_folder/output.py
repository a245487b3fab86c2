"""The output folder, checked by what lies there: quick, and before a model is looked for."""

import os
import stat
from pathlib import Path

from lorafit.config.schema import Settings
from lorafit.errors import CheckpointError, StorageError, UsageError
from lorafit.text import excerpt
from lorafit.training.checkpoints.checkpoint import STAGING_PREFIX
from lorafit.training.run_folder.lock import LOCK_FILE

RUN_FILE = "run.json"


def check_output_folder(settings: Settings) -> None:
    """Refuse an output folder that cannot be used, before a model is looked for or downloaded.

    Raises:
        StorageError: the folder is a file, holds something else, or cannot be written.
        UsageError: it is also the folder of the data, or of a model that is a local folder.
    """
    check_output(settings, Path(settings.model))


def check_output(settings: Settings, model: Path) -> None:
    """Refuse an output folder that cannot be used, given the folder of the base model.

    Raises:
        StorageError, UsageError: as `check_output_folder`.
    """
    run_dir = Path(settings.output_dir)
    try:
        _check_overlap(run_dir, model, Path(str(settings.data)))
        _check_contents(run_dir)
    except (OSError, RuntimeError) as problem:  # pathlib's word for a loop of symbolic links
        raise _unusable(run_dir, problem) from None


def _check_overlap(run_dir: Path, model: Path, data: Path) -> None:
    resolved = run_dir.resolve()
    if os.path.exists(model) and resolved == model.resolve():
        raise UsageError(
            f"--output-dir {run_dir} is the folder of the base model, which would be mixed up",
            hint="choose another --output-dir, such as outputs/my-run",
        )
    if os.path.exists(data) and resolved == data.resolve().parent and not is_run(run_dir):
        raise UsageError(
            f"--output-dir {run_dir} is the folder of the training data, which would be mixed up",
            hint="choose another --output-dir, such as outputs/my-run",
        )


def _check_contents(run_dir: Path) -> None:
    if run_dir.is_dir():
        if not is_run(run_dir):
            # A lock, or a record half written, of a run that was killed as it began.
            found = sorted(
                entry.name
                for entry in run_dir.iterdir()
                if entry.name != LOCK_FILE and not entry.name.startswith(STAGING_PREFIX)
            )
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


def require_checkpoint_folder(resume: str | None) -> None:
    """Check that the folder that `--resume` names, if it names one, is there.

    Raises:
        CheckpointError: it is not.
    """
    if resume in (None, "auto") or os.path.isdir(str(resume)):
        return
    raise CheckpointError(
        f"there is no checkpoint folder {excerpt(str(resume))}",
        hint="name a checkpoint-N folder of a run, or --resume auto" + _checkpoints_beside(resume),
    )


def _checkpoints_beside(resume: str | None) -> str:
    folder = os.path.dirname(str(resume)) or "."
    found = sorted(Path(folder).glob("checkpoint-*")) if os.path.isdir(folder) else []
    names = ", ".join(path.name for path in found)
    return f"; {excerpt(folder)} holds {excerpt(names)}" if names else ""


def permission_notes(folder: Path) -> list[str]:
    """Return what deserves a word about who else may have written a checkpoint."""
    status = folder.stat()
    notes = []
    if status.st_mode & stat.S_IWOTH:
        notes.append(f"{folder.name} may be written by everyone here: chmod -R o-w '{folder}'")
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        notes.append(f"{folder.name} belongs to another user ({status.st_uid})")
    return notes
