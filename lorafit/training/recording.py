"""run.json and events.jsonl as a run begins, and the notes that are recorded and told."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafit.errors import StorageError
from lorafit.report.events import EventLog
from lorafit.report.records import RunObserver
from lorafit.report.run_record import NoRecord, RunRecord
from lorafit.training.checkpoint import sweep_staging
from lorafit.training.fingerprint import fingerprint_of
from lorafit.training.folder import Start, schedule_change
from lorafit.training.loading import multiplies_on_cpu
from lorafit.training.plan import RunPlan
from lorafit.training.retention import set_later_aside


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
