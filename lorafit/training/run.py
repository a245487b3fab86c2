"""A run from plan to adapter, in the order in which it happens."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorafit.errors import DivergedError, RunInterruptedError
from lorafit.report.failure import failure_facts
from lorafit.report.html.write import write_run_report
from lorafit.report.overfitting import ValidationWatch
from lorafit.report.records import RunObserver
from lorafit.report.run_record import RunRecord, Status
from lorafit.report.tally import Tally
from lorafit.report.trackers import make_trackers
from lorafit.training.agreement import announce
from lorafit.training.calibrate import remember_peak
from lorafit.training.distributed import World
from lorafit.training.explain import errors_explained
from lorafit.training.final import save_final
from lorafit.training.fit import predicted_peak_bytes, verify_free_memory
from lorafit.training.folder import ResumeChoice, check_folder, find_start, read_run
from lorafit.training.loading import compile_failure, keep_products, load_for
from lorafit.training.lock import RunLock
from lorafit.training.oom import is_out_of_memory
from lorafit.training.plan import RunPlan
from lorafit.training.recording import note, open_records, tell
from lorafit.training.rl.steps import load_rewards
from lorafit.training.signals import StopRequest
from lorafit.training.steps import take_steps
from lorafit.training.watchers import Guarded


@dataclass(frozen=True)
class RunResult:
    """What a run leaves behind."""

    run_dir: Path
    adapter: Path
    results: dict[str, Any]
    """The figures of run.json's `results`."""
    notes: tuple[str, ...]
    was_complete: bool
    """Nothing was done: an earlier command had finished this very run."""


def run_training(
    plan: RunPlan,
    *,
    resume: ResumeChoice | None = None,
    observers: Sequence[RunObserver] = (),
    world: World | None = None,
) -> RunResult:
    """Train as planned: folder, model, steps, checkpoints, verified adapter.

    Args:
        plan: the decided run.
        resume: what to continue from; None: an unfinished run of the same settings in the output
            folder, if there is one.
        observers: who else watches, beside events.jsonl and run.json. One whose output breaks
            sees no more of the run, which goes on.
        world: the processes that train together; this is the first of them, and the others are in
            `follow_training`.

    Raises:
        StorageError: the output folder cannot be used, is in use, or the disk is full.
        CheckpointError: the folder holds another run, or the checkpoint is damaged.
        UsageError: what `resume` asks for does not exist.
        ModelError: the weights cannot be loaded.
        MemoryFitError: the run would not fit, or memory ran out for good.
        DivergedError: loss or gradient became non-finite.
        RunInterruptedError: a signal asked to stop, and a checkpoint was saved.
    """
    run_dir = Path(plan.settings.output_dir)
    resume = resume or ResumeChoice()
    world = world or World()
    check_folder(plan)
    start = find_start(plan, resume)
    if start.is_complete:
        announce(world, plan, start)
        return _already_complete(run_dir)
    plan.require_fit()
    verify_free_memory(plan)
    with StopRequest() as stop, RunLock(run_dir) as lock, errors_explained(plan):
        # Between the first look and the lock, another process may have finished the run.
        start = find_start(plan, resume)
        if start.imports is not None:
            from lorafit.training.hf_import import take_over

            start = take_over(plan, start, resume.allowed)
        announce(world, plan, start)
        if start.is_complete:
            return _already_complete(run_dir)
        rewards = load_rewards(plan)
        model, device, choices = load_for(plan, world)
        choices += keep_products(plan, start, world)
        watchers = [Guarded(observer) for observer in observers]
        record, events = open_records(plan, start, [*([lock.note] if lock.note else []), *choices])
        say = partial(note, record, watchers)
        tally = Tally()
        try:
            trackers = make_trackers(plan.settings, run_dir, start.run_id)
            patience = plan.settings.early_stopping_patience
            validation = ValidationWatch(run_dir, patience, say)
            everyone: list[RunObserver] = [events, tally, *trackers, *watchers, validation]
            for text in record.notes:
                tell(watchers, text)
            sample_gap = take_steps(
                plan, start, model, device, everyone, record, stop, validation, world, rewards
            )
            results = _results(plan, tally) | {"stopped_early": validation.stop_reason}
            results |= save_final(plan, start.run_id, model)
            if reason := compile_failure():
                say(reason)
            # What is remembered corrects the estimates of supervised steps.
            is_known = plan.settings.method == "sft" and not plan.is_sharded
            if is_known and (problem := remember_peak(plan, results["peak_memory_bytes"])):
                say(problem)
        except BaseException as failure:
            _close_failed(run_dir, record, failure, _results(plan, tally))
            raise
        gaps = [
            ("events.jsonl", events.failure),
            *((tracker.NAME, tracker.failure) for tracker in trackers),
            ("samples.jsonl", sample_gap),
            *(("the terminal's output", watcher.failure) for watcher in watchers),
        ]
        _close_complete(run_dir, record, results, gaps, watchers)
        world.meet()
    return RunResult(run_dir, run_dir / "adapter", results, tuple(record.notes), was_complete=False)


def _already_complete(run_dir: Path) -> RunResult:
    results = read_run(run_dir).get("results", {})
    note = "this run is already complete"
    return RunResult(run_dir, run_dir / "adapter", results, (note,), was_complete=True)


def _results(plan: RunPlan, tally: Tally) -> dict[str, Any]:
    """Return the figures of the run, with the prediction beside the measured memory."""
    return {**tally.results(), "predicted_peak_memory_bytes": predicted_peak_bytes(plan)}


def _close_complete(
    run_dir: Path,
    record: RunRecord,
    results: Mapping[str, Any],
    gaps: Sequence[tuple[str, str | None]],
    watchers: Sequence[RunObserver],
) -> None:
    """Close the record of a run that took all its steps, with what is missing of its files."""
    for name, reason in gaps:
        if reason:
            record.note(f"{name} is incomplete: {reason}")
            tell(watchers, record.notes[-1])
    record.close("completed", results)
    if gap := write_run_report(run_dir):
        record.note(f"report.html was not written: {gap}")
        tell(watchers, record.notes[-1])


def _close_failed(
    run_dir: Path, record: RunRecord, failure: BaseException, results: Mapping[str, Any]
) -> None:
    """Close the record of a run that ended early, with the reason."""
    # Where the disk is the reason, the record cannot be written either.
    with contextlib.suppress(OSError):
        status = _status_of(failure)
        record.add(failure=failure_facts(failure, status))
        record.close(status, results)
    write_run_report(run_dir)


def _status_of(failure: BaseException) -> Status:
    # SystemExit is how a signal before the first step ends a run.
    if isinstance(failure, RunInterruptedError | KeyboardInterrupt | SystemExit):
        return "interrupted"
    if isinstance(failure, DivergedError):
        return "diverged"
    return "out_of_memory" if is_out_of_memory(failure) else "failed"
