"""What checkpoints lie in a run's folder, in what state, and what will become of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import CheckpointError, LorafitError
from lorafit.files import free_bytes
from lorafit.training.checkpoints.checkpoint import (
    MANIFEST_FILE,
    Checkpoint,
    read_manifest,
    verify_checkpoint,
)
from lorafit.training.checkpoints.layout import STATE_FILES
from lorafit.training.checkpoints.retention import (
    own_checkpoints,
    plan_retention,
    prune_checkpoints,
)
from lorafit.training.run_folder.folder import read_run
from lorafit.training.run_folder.lock import RunLock
from lorafit.training.run_folder.output import is_run
from lorafit.units import format_bytes


@dataclass(frozen=True)
class Entry:
    """One checkpoint folder."""

    folder: Path
    step: int | None
    num_bytes: int | None
    loss: float | None
    validation_loss: float | None
    problem: str | None
    """Why it cannot be used; None if every file is as it was written."""
    is_own: bool
    is_kept: bool
    fate: str
    """What retention does to it, and why."""


@dataclass(frozen=True)
class Forecast:
    """Disk space of a run, from the size of its checkpoints and the saves of its schedule."""

    checkpoint_bytes: int
    num_written: int
    """Checkpoints over the whole run."""
    num_kept: int
    """Checkpoints on disk at the fullest moment: the newest, the best and one being written."""
    free_bytes: int

    @property
    def unlimited_bytes(self) -> int:
        """Bytes of all checkpoints of the run, size x saves."""
        return self.checkpoint_bytes * self.num_written

    @property
    def limited_bytes(self) -> int:
        """Bytes at the fullest moment with save_total_limit."""
        return self.checkpoint_bytes * self.num_kept


@dataclass(frozen=True)
class Inventory:
    """The checkpoints of a folder, and what the run will take."""

    run_dir: Path
    run_id: str
    status: str
    entries: tuple[Entry, ...]
    forecast: Forecast | None

    def forecast_lines(self) -> list[str]:
        """Return the forecast in words."""
        forecast = self.forecast
        if forecast is None:
            return []
        lines = [
            f"disk: {format_bytes(forecast.checkpoint_bytes)} a checkpoint x "
            f"{forecast.num_written} saves of the whole run = "
            f"{format_bytes(forecast.unlimited_bytes)}; save_total_limit keeps at most "
            f"{forecast.num_kept} at once, {format_bytes(forecast.limited_bytes)}; "
            f"{format_bytes(forecast.free_bytes)} are free",
        ]
        if forecast.limited_bytes > forecast.free_bytes + self._own_bytes():
            lines.append(
                f"warning: only {format_bytes(forecast.free_bytes)} are free in {self.run_dir}"
            )
        return lines

    def _own_bytes(self) -> int:
        return sum(entry.num_bytes or 0 for entry in self.entries if entry.is_own)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        forecast = self.forecast
        return {
            "run_dir": str(self.run_dir),
            "run_id": self.run_id,
            "status": self.status,
            "checkpoints": [
                {**asdict(entry), "folder": str(entry.folder), "whole": entry.problem is None}
                for entry in self.entries
            ],
            "forecast": None
            if forecast is None
            else {
                **asdict(forecast),
                "unlimited_bytes": forecast.unlimited_bytes,
                "limited_bytes": forecast.limited_bytes,
            },
        }


def take_inventory(run_dir: Path) -> Inventory:
    """Look at every `checkpoint-*` folder of a run and verify it.

    Raises:
        CheckpointError: the folder is not that of a run.
    """
    record = _require_run(run_dir)
    run_id = str(record["run_id"])
    own = own_checkpoints(run_dir, run_id)
    fates = {entry.checkpoint.folder: entry for entry in plan_retention(own, _limit(record))}
    folders = sorted(run_dir.glob("checkpoint-*"), key=_by_step)
    entries = []
    for folder in folders:
        found, problem = _look(folder)
        fate = fates.get(folder)
        entries.append(
            Entry(
                folder=folder,
                step=found.step if found else None,
                num_bytes=found.num_bytes if found else None,
                loss=_number(found.facts.get("loss")) if found else None,
                validation_loss=found.validation_loss if found else None,
                problem=problem,
                is_own=fate is not None,
                is_kept=fate is None or fate.is_kept,
                fate=_fate_in_words(fate.is_kept, fate.reason) if fate else "not this run's: kept",
            )
        )
    return Inventory(
        run_dir, run_id, str(record["status"]), tuple(entries), _forecast(run_dir, record, own)
    )


def _fate_in_words(is_kept: bool, reason: str) -> str:
    return reason if is_kept else f"{reason}: goes with the next save"


def _look(folder: Path) -> tuple[Checkpoint | None, str | None]:
    try:
        found = read_manifest(folder)
    except LorafitError as problem:
        return None, str(problem)
    try:
        verify_checkpoint(folder, STATE_FILES)
    except LorafitError as problem:
        return found, str(problem)
    return found, None


def _by_step(folder: Path) -> tuple[int, str]:
    number = folder.name.removeprefix("checkpoint-")
    return (int(number) if number.isascii() and number.isdigit() else 2**63, folder.name)


def verify_all(path: Path) -> list[tuple[Path, str | None]]:
    """Return each checkpoint below `path`, or `path` itself, with what is wrong with it."""
    is_one = (path / MANIFEST_FILE).exists() or path.name.startswith("checkpoint-")
    folders = [path] if is_one else sorted(path.glob("checkpoint-*"), key=_by_step)
    return [(folder, _look(folder)[1]) for folder in folders]


def prune_run(run_dir: Path, keep: int | None, *, dry_run: bool) -> tuple[list[Path], int]:
    """Delete a run's checkpoints beyond `keep` and the best; return them and the bytes freed.

    Raises:
        CheckpointError: the folder is not that of a run, or its newest checkpoint is damaged.
        StorageError: the run is going on in another process.
    """
    record = _require_run(run_dir)
    run_id = str(record["run_id"])
    limit = keep or _limit(record)
    own = own_checkpoints(run_dir, run_id)
    surplus = [entry.checkpoint for entry in plan_retention(own, limit) if not entry.is_kept]
    sizes = {checkpoint.folder: checkpoint.num_bytes for checkpoint in surplus}
    if surplus:
        verify_checkpoint(own[-1].folder, STATE_FILES)
    removed = list(sizes)
    if not dry_run:
        with RunLock(run_dir):
            removed = prune_checkpoints(run_dir, limit, run_id)
    return removed, sum(sizes[folder] for folder in removed)


def _require_run(run_dir: Path) -> dict[str, Any]:
    if not is_run(run_dir):
        raise CheckpointError(
            "holds no run of lorafit",
            where=str(run_dir),
            hint="name the --output-dir of a run: the folder with run.json",
        )
    return read_run(run_dir)


def _limit(record: Mapping[str, Any]) -> int:
    try:
        return int(record["settings"]["save_total_limit"]["value"])
    except (KeyError, TypeError, ValueError):
        return 1


def _forecast(run_dir: Path, record: Mapping[str, Any], own: list[Checkpoint]) -> Forecast | None:
    """Return what the run takes, from its real checkpoints where there are some."""
    try:
        disk = record["plan"]["disk"]
        planned, written, kept = (
            int(disk[name]) for name in ("checkpoint_bytes", "num_written", "num_kept")
        )
    except (KeyError, TypeError, ValueError):
        return None
    measured = max((checkpoint.num_bytes for checkpoint in own), default=planned)
    return Forecast(measured, written, kept, free_bytes(run_dir))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
