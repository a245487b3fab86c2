"""events.jsonl: one JSON object a step, on disk as soon as the step is done."""

import json
import os
from pathlib import Path

from lorafit.report.records import StepRecord

EVENTS_FILE = "events.jsonl"


class EventLog:
    """Appends every step to events.jsonl; a full disk costs the log, never the run."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / EVENTS_FILE
        self.failure: str | None = None
        """Why the log is incomplete, if it is."""

    def keep_until(self, step: int) -> None:
        """Drop lines after `step`, which an interrupted run wrote and a resumed one repeats."""
        if not self.path.exists():
            return
        kept = [line for line in _lines(self.path) if _step_of(line) <= step]
        staging = self.path.with_suffix(".staging")
        staging.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(staging, self.path)

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Nothing to write yet."""

    def on_step(self, record: StepRecord) -> None:
        """Append the step."""
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record.as_dict(), allow_nan=False) + "\n")
        except OSError as problem:
            self.failure = self.failure or str(problem)

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Progress is for people."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Checkpoints carry their own manifest."""

    def on_note(self, text: str) -> None:
        """Notes go to run.json."""

    def on_end(self) -> None:
        """Every line is on disk already."""


def _lines(path: Path) -> list[str]:
    # A power loss can leave bytes that are no text in place of the last lines.
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _step_of(line: str) -> int:
    # A line that a kill cut in half belongs to a step that will be run again.
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 2**63


def read_events(run_dir: Path) -> list[dict[str, float]]:
    """Return the complete lines of a run's events.jsonl, in order."""
    path = run_dir / EVENTS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in _lines(path) if _step_of(line) < 2**63]
