"""What is kept of a run while it goes on, who is told of it, and the record of how it ended."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafit.errors import DivergedError, RunInterruptedError, StorageError
from lorafit.report.events import EventLog
from lorafit.report.failure import failure_facts
from lorafit.report.html.write import write_run_report
from lorafit.report.overfitting import ValidationWatch
from lorafit.report.pace import Pace
from lorafit.report.records import RunObserver
from lorafit.report.run_record import NoRecord, RunRecord, Status
from lorafit.report.tally import Tally
from lorafit.report.tracker import Tracker
from lorafit.report.trackers import make_trackers
from lorafit.training.checkpoints.checkpoint import sweep_staging
from lorafit.training.checkpoints.retention import set_later_aside
from lorafit.training.guard.oom import is_out_of_memory
from lorafit.training.loading import multiplies_on_cpu
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.run_folder.fingerprint import fingerprint_of
from lorafit.training.run_folder.folder import Start, schedule_change
from lorafit.training.timing.duration import estimate_duration
from lorafit.training.watchers import Guarded


class Recording:
    """The records of a run, open; closed once, by how the run ended."""

    validation: ValidationWatch

    def __init__(
        self,
        plan: RunPlan,
        start: Start,
        notes: Sequence[str],
        observers: Sequence[RunObserver],
        pace: Pace | None = None,
    ) -> None:
        """Write run.json with `notes`; one of `observers` that fails sees no more of the run.

        `pace` has its clock running since the run was planned.

        Raises:
            StorageError: the records cannot be written.
        """
        self._plan = plan
        self._run_dir = Path(plan.settings.output_dir)
        self._run_id = start.run_id
        self._watchers = [Guarded(observer) for observer in observers]
        is_whole = start.step == 0
        self._predicted = plan.duration if is_whole else estimate_duration(plan, start.step)
        self._tally = Tally()
        self.pace = pace or Pace()
        self._trackers: Sequence[Tracker] = ()
        # Last: what fails from here on is to be recorded as the end of the run.
        self.record, self._events = open_records(plan, start, notes)

    def gather(self) -> list[RunObserver]:
        """Open the trackers, tell what was noted so far, and return who watches the steps."""
        settings = self._plan.settings
        self._trackers = make_trackers(settings, self._run_dir, self._run_id)
        patience = settings.early_stopping_patience
        self.validation = ValidationWatch(self._run_dir, patience, self.say)
        for text in self.record.notes:
            tell(self._watchers, text)
        return [
            self._events,
            self._tally,
            self.pace,
            *self._trackers,
            *self._watchers,
            self.validation,
        ]

    def say(self, text: str) -> None:
        """Record and tell what a person should know."""
        note(self.record, self._watchers, text)

    def results(self) -> dict[str, Any]:
        """Return the figures of the run, with predictions beside measured memory and time."""
        return {
            **self._tally.results(),
            "predicted_peak_memory_bytes": self._plan.predicted_peak_bytes,
            "duration_seconds": round(self.pace.elapsed_seconds, 3),
            **self._predicted.as_results(),
        }

    def close_complete(self, results: Mapping[str, Any], sample_gap: str | None) -> None:
        """Close the record of a run that took all its steps, with what is missing of its files."""
        gaps = [
            ("events.jsonl", self._events.failure),
            *((tracker.NAME, tracker.failure) for tracker in self._trackers),
            ("samples.jsonl", sample_gap),
            *(("the terminal's output", watcher.failure) for watcher in self._watchers),
        ]
        for name, reason in gaps:
            if reason:
                self._note_and_tell(f"{name} is incomplete: {reason}")
        self.record.close("completed", results)
        if gap := write_run_report(self._run_dir):
            self._note_and_tell(f"report.html was not written: {gap}")

    def _note_and_tell(self, text: str) -> None:
        # Unlike in the middle of the run, what cannot be recorded now is an error.
        self.record.note(text)
        tell(self._watchers, text)

    def close_failed(self, failure: BaseException) -> None:
        """Close the record of a run that ended early, with the reason."""
        # Where the disk is the reason, the record cannot be written either.
        with contextlib.suppress(OSError):
            status = _status_of(failure)
            self.record.add(failure=failure_facts(failure, status))
            self.record.close(status, self.results())
        write_run_report(self._run_dir)


def _status_of(failure: BaseException) -> Status:
    # SystemExit is how a signal before the first step ends a run.
    if isinstance(failure, RunInterruptedError | KeyboardInterrupt | SystemExit):
        return "interrupted"
    if isinstance(failure, DivergedError):
        return "diverged"
    return "out_of_memory" if is_out_of_memory(failure) else "failed"


def open_records(plan: RunPlan, start: Start, notes: Sequence[str]) -> tuple[RunRecord, EventLog]:
    """Write run.json, keep the events up to where the run goes on, and return both.

    Raises:
        StorageError: they cannot be written.
    """
    run_dir = Path(plan.settings.output_dir)
    resolved = plan.resolved
    settings = {
        name: {"value": value, "origin": str(resolved.origins[name])}
        for name, value in plan.settings.model_dump(mode="json").items()
    }
    from lorafit.model.lean.cpu_products import cpu_products

    before = start.record or {}
    change = schedule_change(plan, start)
    facts = {
        "preset": resolved.preset,
        "settings": settings,
        "plan": plan.as_dict(),
        "fingerprint": fingerprint_of(plan),
        "cpu_products": cpu_products() if multiplies_on_cpu(plan) else None,
        "imported": start.imported or before.get("imported"),
        "attempts": [*before.get("attempts", []), *_attempt(before)],
        "memory_recoveries": before.get("memory_recoveries", []),
        "extensions": [*before.get("extensions", []), *([change.as_dict()] if change else [])],
        "allowed_mismatches": before.get("allowed_mismatches", {})
        | {name: {"then": then, "now": now} for name, (then, now) in start.changed.items()},
    }
    try:
        record = RunRecord(run_dir, start.run_id, facts)
        for text in (start.reason, *start.notes, *notes):
            record.note(text)
        for leftover in sweep_staging(run_dir):
            record.note(f"removed {leftover.name}, which a killed save left behind")
        if start.changed:
            for moved in set_later_aside(run_dir, start.run_id, start.step):
                record.note(f"{moved.name} was of the course before, and is kept under this name")
        events = EventLog(run_dir)
        events.keep_until(start.step)
    except OSError as problem:
        raise StorageError(
            f"the run could not be recorded: {problem.strerror or problem}",
            where=str(problem.filename or run_dir),
            hint="free space or make the folder writable, then run the same command again",
        ) from problem
    return record, events


def _attempt(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what run.json keeps of the attempt before this one, if there was one."""
    if not record:
        return []
    names = ("started_at", "ended_at", "status", "notes", "versions")
    return [{name: record[name] for name in names if name in record}]


def note(record: RunRecord | NoRecord, observers: Sequence[RunObserver], text: str) -> None:
    """Record and tell what a person should know; a full disk costs the record only."""
    with contextlib.suppress(OSError):
        record.note(text)
    tell(observers, text)


def tell(observers: Sequence[RunObserver], text: str) -> None:
    """Tell what was recorded already."""
    for observer in observers:
        observer.on_note(text)
