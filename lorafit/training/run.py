"""A run from plan to adapter, in the order in which it happens."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import DivergedError, RunInterruptedError, StorageError
from lorafit.hardware.visible import show_only
from lorafit.report.events import EventLog
from lorafit.report.failure import failure_facts
from lorafit.report.html.write import write_run_report
from lorafit.report.overfitting import ValidationWatch
from lorafit.report.records import RunObserver
from lorafit.report.run_record import NoRecord, RunRecord, Status
from lorafit.report.tally import Tally
from lorafit.report.trackers import make_trackers
from lorafit.training.agreement import announce
from lorafit.training.blame import row_source
from lorafit.training.calibrate import calibrate_if_new, remember_peak
from lorafit.training.checkpoint import sweep_staging
from lorafit.training.distributed import World
from lorafit.training.explain import errors_explained
from lorafit.training.final import save_final
from lorafit.training.fingerprint import fingerprint_of
from lorafit.training.fit import predicted_peak_bytes, verify_free_memory
from lorafit.training.folder import (
    ResumeChoice,
    Start,
    check_folder,
    find_start,
    machine_facts,
    read_run,
    schedule_change,
)
from lorafit.training.lock import RunLock
from lorafit.training.oom import Checkpointing, MemoryRecovery, Shrink, is_out_of_memory
from lorafit.training.plan import RunPlan
from lorafit.training.retention import set_later_aside
from lorafit.training.rl.steps import Reward, load_rewards, take_method_steps
from lorafit.training.signals import StopRequest
from lorafit.training.watchers import Guarded

if TYPE_CHECKING:
    import torch
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
    verify_free_memory(plan)
    with StopRequest() as stop, RunLock(run_dir) as lock, errors_explained(plan):
        # Between the first look and the lock, another process may have finished the run.
        start = find_start(plan, resume)
        announce(world, plan, start)
        if start.is_complete:
            return _already_complete(run_dir)
        rewards = load_rewards(plan)
        model, device, choices = load_model(plan)
        watchers = [Guarded(observer) for observer in observers]
        record, events = _open_run_folder(
            plan, start, [*([lock.note] if lock.note else []), *choices]
        )
        tally = Tally()
        try:
            trackers = make_trackers(plan.settings, run_dir, start.run_id)
            patience = plan.settings.early_stopping_patience
            validation = ValidationWatch(
                run_dir, patience, lambda text: _note(record, watchers, text)
            )
            everyone: list[RunObserver] = [events, tally, *trackers, *watchers, validation]
            for note in record.notes:
                _tell(watchers, note)
            sample_gap = take_steps(
                plan, start, model, device, everyone, record, stop, validation, world, rewards
            )
            results = _results(plan, tally) | {"stopped_early": validation.stop_reason}
            results |= save_final(plan, start.run_id, model)
            if reason := _compile_failure():
                _note(record, watchers, reason)
            # What is remembered corrects the estimates of supervised steps.
            is_sft = plan.settings.method == "sft"
            if is_sft and (problem := remember_peak(plan, results["peak_memory_bytes"])):
                _note(record, watchers, problem)
        except BaseException as failure:
            # Where the disk is the reason, the record cannot be written either.
            with contextlib.suppress(OSError):
                status = _status_of(failure)
                record.add(failure=failure_facts(failure, status))
                record.close(status, _results(plan, tally))
            write_run_report(run_dir)
            raise
        gaps = [(tracker.NAME, tracker.failure) for tracker in trackers]
        gaps.append(("samples.jsonl", sample_gap))
        terminal = [("the terminal's output", watcher.failure) for watcher in watchers]
        for name, reason in (("events.jsonl", events.failure), *gaps, *terminal):
            if reason:
                record.note(f"{name} is incomplete: {reason}")
                _tell(watchers, record.notes[-1])
        record.close("completed", results)
        if gap := write_run_report(run_dir):
            record.note(f"report.html was not written: {gap}")
            _tell(watchers, record.notes[-1])
        world.meet()
    return RunResult(run_dir, run_dir / "adapter", results, tuple(record.notes), was_complete=False)


def _already_complete(run_dir: Path) -> RunResult:
    results = read_run(run_dir).get("results", {})
    note = "this run is already complete"
    return RunResult(run_dir, run_dir / "adapter", results, (note,), was_complete=True)


def _note(record: RunRecord | NoRecord, observers: Sequence[RunObserver], text: str) -> None:
    """Record and tell what a person should know; a full disk costs the record only."""
    with contextlib.suppress(OSError):
        record.note(text)
    _tell(observers, text)


def _tell(observers: Sequence[RunObserver], note: str) -> None:
    for observer in observers:
        observer.on_note(note)


def _results(plan: RunPlan, tally: Tally) -> dict[str, Any]:
    """Return the figures of the run, with the prediction beside the measured memory."""
    return {**tally.results(), "predicted_peak_memory_bytes": predicted_peak_bytes(plan)}


def load_model(plan: RunPlan) -> "tuple[PeftModel, torch.device, list[str]]":
    """Return the model with its adapter, where it is, and what was chosen on the way."""
    # One process trains on one device: were more visible, the Trainer would split every batch
    # over all of them by its slow DataParallel.
    show_only(plan.device)
    import torch

    from lorafit.memory.malloc import return_freed_blocks
    from lorafit.model.build import add_adapter, load_base
    from lorafit.model.lean.cpu_products import choose_cpu_products
    from lorafit.model.lean.fusion import fuse
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    if plan.device.kind == "cpu":
        # The estimate assumes it, and so does whoever shares the machine.
        return_freed_blocks()
    choices = []
    if plan.model.lean_layers.value:
        fuse(plan.torch_compile.value)
        if plan.device.kind == "cpu":
            choices.append(choose_cpu_products(plan.device.name).reason)
    device = torch.device("cuda:0" if plan.device.kind == "cuda" else plan.device.kind)
    base = load_base(plan.settings, plan.source, getattr(torch, plan.dtype.value), device)
    model, _ = add_adapter(base, plan.settings)
    return model, device, choices


def _compile_failure() -> str | None:
    """Return why the lean layers ran uncompiled though they were to be compiled, if so."""
    from lorafit.model.lean.fusion import fusion_failure

    reason = fusion_failure()
    return f"{reason}; the functions ran as they are written" if reason else None


def _open_run_folder(
    plan: RunPlan, start: Start, notes: Sequence[str]
) -> tuple[RunRecord, EventLog]:
    run_dir = Path(plan.settings.output_dir)
    resolved = plan.resolved
    settings = {
        name: {"value": value, "origin": str(resolved.origins[name])}
        for name, value in plan.settings.model_dump(mode="json").items()
    }
    before = start.record or {}
    change = schedule_change(plan, start)
    facts = {
        "preset": resolved.preset,
        "settings": settings,
        "plan": plan.as_dict(),
        "fingerprint": fingerprint_of(plan),
        "attempts": [*before.get("attempts", []), *_attempt(before)],
        "memory_recoveries": before.get("memory_recoveries", []),
        "extensions": [*before.get("extensions", []), *([change.as_dict()] if change else [])],
        "allowed_mismatches": before.get("allowed_mismatches", {})
        | {name: {"then": then, "now": now} for name, (then, now) in start.changed.items()},
    }
    try:
        record = RunRecord(run_dir, start.run_id, facts)
        for note in (start.reason, *start.notes, *notes):
            record.note(note)
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


def take_steps(
    plan: RunPlan,
    start: Start,
    model: "PeftModel",
    device: "torch.device",
    observers: Sequence[RunObserver],
    record: RunRecord | NoRecord,
    stop: StopRequest,
    validation: ValidationWatch | None,
    world: World,
    rewards: Sequence[Reward] = (),
) -> str | None:
    """Take the steps; return why samples are missing, if they are.

    Every process of the run comes here; what only the first one does, it does through `observers`,
    `record` and `validation`, which the others have not.
    """
    import torch

    from lorafit.model.build import attention_context
    from lorafit.training.arguments import training_arguments
    from lorafit.training.samples import Sampler
    from lorafit.training.trainer import LoraTrainer

    if plan.settings.method != "sft":
        with attention_context(plan.settings):
            take_method_steps(
                plan,
                start,
                model,
                device,
                observers,
                lambda text: _note(record, observers, text),
                _memory_recovery(plan, model, device, observers, record, world),
                stop,
                rewards,
            )
        return None
    sampler = Sampler(plan, start.step) if world.is_main else None

    def after_evaluation(step: int) -> bool:
        if sampler is not None:
            sampler.write(model, step)
        return validation is not None and validation.stop_reason is not None

    settings = plan.settings
    arguments = training_arguments(
        settings,
        run_dir=Path(settings.output_dir),
        # Of all devices together: each takes its share.
        rows_per_step=plan.batch.effective_batch_size,
        warmup_steps=plan.schedule.warmup_steps,
        dtype=getattr(torch, plan.dtype.value),
        device_kind=device.type,
        # Of lean layers only the elementwise functions are compiled, see model/lean/fusion.
        compile_model=plan.torch_compile.value and not plan.model.lean_layers.value,
        validate=plan.data.validation is not None,
    )
    pad, chunked = plan.pad.token_id, plan.model.chunked_loss.value
    with attention_context(settings):
        if world.is_main:
            calibrate_if_new(plan, model, device, lambda text: _note(record, observers, text))
        trainer = LoraTrainer(
            settings=settings,
            run_id=start.run_id,
            observers=observers,
            stop=stop,
            recovery=_memory_recovery(plan, model, device, observers, record, world),
            facts=machine_facts(plan),
            row_source=lambda row: row_source(plan.data.train, row),
            note=lambda text: _note(record, observers, text),
            after_evaluation=after_evaluation,
            world=world,
            collate=plan.batching.collator(pad, locate_targets=chunked),
            eval_collate=plan.batching.eval_collator(pad, locate_targets=chunked),
            model=model,
            args=arguments,
            train_dataset=plan.batching.dataset(plan.data.train),
            eval_dataset=plan.data.validation,
        )
        stop.begin_saving()
        for observer in observers:
            observer.on_start(plan.schedule.total_steps, start.step)
        try:
            trainer.train(
                resume_from_checkpoint=str(start.checkpoint.folder) if start.checkpoint else None
            )
        finally:
            for observer in observers:
                observer.on_end()
        if stop.received is not None and trainer.state.global_step < plan.schedule.total_steps:
            raise RunInterruptedError(
                f"{stop.received.name} received: saved at step {trainer.state.global_step} of "
                f"{plan.schedule.total_steps}",
                hint="run the same command again to go on from there",
            )
    return None if sampler is None else sampler.failure


def _memory_recovery(
    plan: RunPlan,
    model: "PeftModel",
    device: "torch.device",
    observers: Sequence[RunObserver],
    record: RunRecord | NoRecord,
    world: World,
) -> MemoryRecovery:
    from lorafit.model.build import checkpoint_layers, decoder_layers

    base = model.get_base_model()
    settings = plan.settings
    num_layers = len(decoder_layers(base))
    planned = settings.checkpointed_layers or num_layers

    def tell(shrink: Shrink) -> None:
        with contextlib.suppress(OSError):
            record.add(memory_recoveries=[*record.fact("memory_recoveries"), shrink.as_dict()])
        _note(record, observers, shrink.sentence())

    return MemoryRecovery(
        limits=plan.batching.limits,
        eval_batch_size=plan.eval_batch_size,
        device=device,
        checkpointing=Checkpointing(
            planned if settings.gradient_checkpointing else 0,
            num_layers,
            lambda count: checkpoint_layers(base, count),
        ),
        predicted_bytes=predicted_peak_bytes(plan),
        recovers=settings.on_oom == "recover",
        on_shrink=tell,
        any_process=world.any,
    )


def _status_of(failure: BaseException) -> Status:
    # SystemExit is how a signal before the first step ends a run.
    if isinstance(failure, RunInterruptedError | KeyboardInterrupt | SystemExit):
        return "interrupted"
    if isinstance(failure, DivergedError):
        return "diverged"
    return "out_of_memory" if is_out_of_memory(failure) else "failed"
