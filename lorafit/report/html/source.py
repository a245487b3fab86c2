"""What a run folder holds, read for a report: tolerant of what is missing, strict in its kinds."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafit.errors import InputError
from lorafit.report.events import EVENTS_FILE, read_events
from lorafit.report.run_record import RUN_FILE
from lorafit.text import excerpt, shell_word

SAMPLES_FILE = "samples.jsonl"
_TABLES = ("settings", "plan", "versions", "results")


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote from a fixed prompt after a step."""

    step: int
    prompt: str
    completion: str


@dataclass(frozen=True)
class RunData:
    """One run as its folder shows it."""

    folder: Path
    name: str
    """The folder's name; longer where several runs would share it."""
    record: dict[str, Any]
    """run.json, whose tables are dictionaries."""
    events: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def table(self, *keys: str) -> dict[str, Any]:
        """Return a table inside run.json, empty where the run did not record it."""
        found: Any = self.record
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name, without their origins."""
        return {
            name: entry.get("value")
            for name, entry in self.table("settings").items()
            if isinstance(entry, dict)
        }


def load_run(folder: Path) -> RunData:
    """Read a run folder.

    Raises:
        InputError: it is not the folder of a run, or its run.json is damaged.
    """
    record = read_record(folder)
    name = folder.name or folder.resolve().name
    return RunData(folder, name, record, _events(folder), read_samples(folder))


def _events(folder: Path) -> list[dict[str, Any]]:
    try:
        return [plain_event(event) for event in read_events(folder)]
    except (OSError, UnicodeDecodeError, RecursionError) as problem:
        raise InputError(
            f"{EVENTS_FILE} cannot be read: {excerpt(str(problem))}", where=str(folder)
        ) from None


def plain_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the finite numbers of an event, which are all that a curve can show."""
    return {
        name: value
        for name, value in event.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


@contextlib.contextmanager
def record_values(folder: Path) -> Iterator[None]:
    """Context that turns a value of a wrong kind, deep in run.json, into an error about the file.

    Raises:
        InputError: what was read is not what a run writes.
    """
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as problem:
        raise InputError(
            f"holds a value that no run writes: {excerpt(str(problem))}",
            where=str(folder / RUN_FILE),
        ) from problem


def _runs_near(folder: Path) -> str:
    """Return the hint for a folder without a run: the runs that lie in or beside it."""
    around = folder if folder.is_dir() else folder.parent
    with contextlib.suppress(OSError):
        runs = sorted(path.parent for path in around.glob(f"*/{RUN_FILE}"))
        if runs:
            return f"runs in {shell_word(around)}: " + ", ".join(map(shell_word, runs[:8]))
    return "name the --output-dir of a `lorafit train`"


def read_record(folder: Path) -> dict[str, Any]:
    """Return a run's run.json.

    Raises:
        InputError: there is none, or it is not the record of a run.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        what = "there is no such folder" if not folder.exists() else f"holds no {RUN_FILE}"
        raise InputError(
            f"{what}, so it is not a run",
            where=excerpt(str(folder)),
            hint=_runs_near(folder),
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise InputError(f"cannot be read: {excerpt(str(problem))}", where=str(path)) from None
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        raise InputError("is not the record of a run: it has no status", where=str(path))
    wrong = [key for key in _TABLES if not isinstance(record.get(key, {}), dict)]
    if wrong:
        raise InputError(f"is not the record of a run: {wrong[0]} is no table", where=str(path))
    return record


def read_samples(folder: Path) -> list[Sample]:
    """Return the complete lines of samples.jsonl; a line that is no sample is passed over."""
    try:
        lines = (folder / SAMPLES_FILE).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    return [sample for line in lines if (sample := _sample_of(line)) is not None]


def _sample_of(line: str) -> Sample | None:
    try:
        row = json.loads(line)
        return Sample(int(row["step"]), str(row["prompt"]), str(row["completion"]))
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


def tell_apart(runs: list[RunData]) -> list[RunData]:
    """Return the runs under names that differ: the folder's, with as many parents as it takes."""
    parts = [run.folder.resolve().parts for run in runs]
    longest = max(map(len, parts), default=1)
    for depth in range(1, longest + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return [
        RunData(run.folder, name, run.record, run.events, run.samples)
        for run, name in zip(runs, names, strict=True)
    ]
