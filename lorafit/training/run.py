"""A run from plan to adapter, in the order in which it happens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.report.pace import Pace
from lorafit.report.records import RunObserver
from lorafit.training.final import save_final
from lorafit.training.guard.calibrate import remember_peak
from lorafit.training.guard.explain import errors_explained
from lorafit.training.guard.signals import StopRequest
from lorafit.training.loading import compile_failure, keep_products, load_for
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.processes.agreement import announce
from lorafit.training.processes.distributed import World
from lorafit.training.recording import Recording
from lorafit.training.rl.steps import load_rewards
from lorafit.training.run_folder.folder import (
    ResumeChoice,
    Start,
    check_folder,
    find_start,
    read_run,
)
from lorafit.training.run_folder.lock import RunLock
from lorafit.training.steps import take_steps
from lorafit.training.timing.duration import remember_speed

if TYPE_CHECKING:
    from peft import PeftModel


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
    plan.verify_free_memory()
    pace = Pace()
    with StopRequest() as stop, RunLock(run_dir) as lock, errors_explained(plan):
        # Between the first look and the lock, another process may have finished the run.
        start = find_start(plan, resume)
        if start.imports is not None:
            from lorafit.training.foreign.hf_import import take_over

            start = take_over(plan, start, resume.allowed)
        announce(world, plan, start)
        if start.is_complete:
            return _already_complete(run_dir)
        rewards = load_rewards(plan)
        model, device, choices = load_for(plan, world)
        choices += keep_products(plan, start, world)
        notes = [*([lock.note] if lock.note else []), *choices]
        recording = Recording(plan, start, notes, observers, pace)
        try:
            everyone = recording.gather()
            record, validation = recording.record, recording.validation
            sample_gap = take_steps(
                plan, start, model, device, everyone, record, stop, validation, world, rewards
            )
            results = _finish(plan, start, model, recording)
        except BaseException as failure:
            recording.close_failed(failure)
            raise
        recording.close_complete(results, sample_gap)
        world.meet()
    return RunResult(run_dir, run_dir / "adapter", results, tuple(record.notes), was_complete=False)


def _finish(
    plan: RunPlan, start: Start, model: "PeftModel", recording: Recording
) -> dict[str, Any]:
    """Save the adapter of a run that has taken its steps; return what it has come to."""
    results = recording.results() | {"stopped_early": recording.validation.stop_reason}
    results |= save_final(plan, start.run_id, model)
    if reason := compile_failure():
        recording.say(reason)
    # What is remembered corrects the estimates of supervised steps.
    is_known = plan.settings.method == "sft" and not plan.is_sharded
    if is_known and (problem := remember_peak(plan, results["peak_memory_bytes"])):
        recording.say(problem)
    if problem := remember_speed(plan, recording.pace):
        recording.say(problem)
    return results | {"duration_seconds": round(recording.pace.elapsed_seconds, 3)}


def _already_complete(run_dir: Path) -> RunResult:
    results = read_run(run_dir).get("results", {})
    note = "this run is already complete"
    return RunResult(run_dir, run_dir / "adapter", results, (note,), was_complete=True)
