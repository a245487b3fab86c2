"""A run from plan to adapter, in the order in which it happens."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.config.batch import BatchPlan
from lorafit.errors import (
    DivergedError,
    LorafitError,
    MemoryFitError,
    RunInterruptedError,
    StorageError,
)
from lorafit.files import plain_os_errors
from lorafit.report.events import EventLog
from lorafit.report.records import RunObserver
from lorafit.report.run_record import RunRecord, Status
from lorafit.report.tally import Tally
from lorafit.report.tensorboard import TensorBoardLog
from lorafit.training.checkpoint import sweep_staging
from lorafit.training.fingerprint import fingerprint_of
from lorafit.training.fit import predicted_peak_bytes, verify_free_memory
from lorafit.training.folder import Start, check_folder, find_start, read_run
from lorafit.training.plan import RunPlan

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
    plan: RunPlan, *, resume: str | None = None, observers: Sequence[RunObserver] = ()
) -> RunResult:
    """Train as planned: folder, model, steps, checkpoints, verified adapter.

    Args:
        plan: the decided run.
        resume: a checkpoint folder, `auto`, or None: continue an unfinished run of the same
            settings in the output folder, if there is one.
        observers: who else watches, beside events.jsonl and run.json.

    Raises:
        StorageError: the output folder cannot be used, or the disk is full.
        CheckpointError: the folder holds another run, or the checkpoint is damaged.
        ModelError: the weights cannot be loaded.
        MemoryFitError: the run would not fit, or memory ran out.
        DivergedError: loss or gradient became non-finite.
        RunInterruptedError: a signal asked to stop, and a checkpoint was saved.
    """
    run_dir = Path(plan.settings.output_dir)
    adapter = run_dir / "adapter"
    check_folder(plan)
    start, notes = find_start(plan, resume)
    if start.is_complete:
        results = read_run(run_dir).get("results", {})
        return RunResult(run_dir, adapter, results, (start.reason,), was_complete=True)
    plan.require_fit()
    verify_free_memory(plan)
    with _memory_errors_explained(plan):
        model, device = _load_model(plan)
        record, events = _open_run_folder(plan, start, notes)
        tally = Tally()
        try:
            trackers = [TensorBoardLog(run_dir)] if "tensorboard" in plan.settings.report_to else []
            everyone: list[RunObserver] = [events, tally, *trackers, *observers]
            for note in record.notes:
                for observer in observers:
                    observer.on_note(note)
            _train(plan, start, model, device, everyone)
            _save(model, adapter, plan)
        except BaseException as failure:
            # Where the disk is the reason, the record cannot be written either.
            with contextlib.suppress(OSError):
                record.close(_status_of(failure), _results(plan, tally))
            raise
    gaps = [(tracker.FOLDER, tracker.failure) for tracker in trackers]
    for name, reason in (("events.jsonl", events.failure), *gaps):
        if reason:
            record.note(f"{name} is incomplete: {reason}")
            for observer in observers:
                observer.on_note(record.notes[-1])
    results = _results(plan, tally)
    record.close("completed", results)
    return RunResult(run_dir, adapter, results, tuple(record.notes), was_complete=False)


def _results(plan: RunPlan, tally: Tally) -> dict[str, Any]:
    """Return the figures of the run, with the prediction beside the measured memory."""
    return {**tally.results(), "predicted_peak_memory_bytes": predicted_peak_bytes(plan)}


def _load_model(plan: RunPlan) -> "tuple[PeftModel, torch.device]":
    if plan.device.kind == "cuda":
        # One process trains on one device: were more visible, the Trainer would split every
        # batch over all of them by its slow DataParallel.
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible_name(plan.device.index)
    import torch

    from lorafit.memory.malloc import return_freed_blocks
    from lorafit.model.build import add_adapter, load_base
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    if plan.device.kind == "cpu":
        # The estimate assumes it, and so does whoever shares the machine.
        return_freed_blocks()
    device = torch.device("cuda:0" if plan.device.kind == "cuda" else plan.device.kind)
    base = load_base(plan.settings, plan.source, getattr(torch, plan.dtype.value), device)
    model, _ = add_adapter(base, plan.settings)
    return model, device


def _visible_name(index: int) -> str:
    """Return what CUDA_VISIBLE_DEVICES calls the device that torch would call `cuda:index`."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return names[index] if names != [""] else str(index)


def _open_run_folder(
    plan: RunPlan, start: Start, notes: Sequence[str]
) -> tuple[RunRecord, EventLog]:
    run_dir = Path(plan.settings.output_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    resolved = plan.resolved
    settings = {
        name: {"value": value, "origin": str(resolved.origins[name])}
        for name, value in plan.settings.model_dump(mode="json").items()
    }
    facts = {
        "preset": resolved.preset,
        "settings": settings,
        "plan": plan.as_dict(),
        "fingerprint": fingerprint_of(plan),
    }
    record = RunRecord(run_dir, start.run_id, facts)
    for note in (start.reason, *notes):
        record.note(note)
    for leftover in sweep_staging(run_dir):
        record.note(f"removed {leftover.name}, which a killed save left behind")
    events = EventLog(run_dir)
    events.keep_until(start.checkpoint.step if start.checkpoint else 0)
    return record, events


def _train(
    plan: RunPlan,
    start: Start,
    model: "PeftModel",
    device: "torch.device",
    observers: Sequence[RunObserver],
) -> None:
    import torch

    from lorafit.data.collate import Collator
    from lorafit.model.build import attention_context
    from lorafit.training.signals import StopRequest
    from lorafit.training.trainer import LoraTrainer, training_arguments

    settings = plan.settings
    arguments = training_arguments(
        settings,
        run_dir=Path(settings.output_dir),
        micro_batch=plan.batch.per_device_train_batch_size,
        accumulation=plan.batch.gradient_accumulation_steps,
        warmup_steps=plan.schedule.warmup_steps,
        dtype=getattr(torch, plan.dtype.value),
        device_kind=device.type,
        compile_model=plan.torch_compile.value,
        validate=plan.data.validation is not None,
    )
    first_step = start.checkpoint.step if start.checkpoint else 0
    with StopRequest() as stop, attention_context(settings):
        trainer = LoraTrainer(
            settings=settings,
            run_id=start.run_id,
            observers=observers,
            stop=stop,
            eval_batch_size=plan.eval_batch_size,
            model=model,
            args=arguments,
            data_collator=Collator(
                plan.pad.token_id,
                pad_to_multiple_of=8,
                locate_targets=plan.model.chunked_loss.value,
            ),
            train_dataset=plan.data.train,
            eval_dataset=plan.data.validation,
        )
        for observer in observers:
            observer.on_start(plan.schedule.total_steps, first_step)
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


def _save(model: "PeftModel", adapter: Path, plan: RunPlan) -> None:
    from lorafit.model.adapter import save_adapter

    try:
        with plain_os_errors():
            save_adapter(model, adapter, plan.settings.model)
    except OSError as problem:
        raise StorageError(
            f"the adapter could not be written: {problem.strerror or problem}",
            where=str(adapter),
            hint="the last checkpoint is intact: free space, then run the same command again",
        ) from problem


def _status_of(failure: BaseException) -> Status:
    if isinstance(failure, RunInterruptedError | KeyboardInterrupt):
        return "interrupted"
    if isinstance(failure, DivergedError):
        return "diverged"
    return "out_of_memory" if is_out_of_memory(failure) else "failed"


def is_out_of_memory(failure: BaseException) -> bool:
    """Return whether an exception says that device or host memory ran out."""
    if isinstance(failure, LorafitError):
        return isinstance(failure, MemoryFitError)
    text = str(failure)
    return (
        type(failure).__name__ == "OutOfMemoryError"
        or "MPS backend out of memory" in text
        or "can't allocate memory" in text
        or isinstance(failure, MemoryError)
    )


@contextlib.contextmanager
def _memory_errors_explained(plan: RunPlan) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        where = "this machine's memory" if plan.device.kind == "cpu" else plan.device.name
        raise MemoryFitError(
            f"ran out of {where} with micro-batch {plan.batch.per_device_train_batch_size} x "
            f"{plan.settings.max_length} tokens: {str(failure).splitlines()[0]}",
            hint=_smaller_batch(plan.batch)
            + "a lower --max-length, --gradient-checkpointing and --quantization nf4 save memory",
        ) from failure


def _smaller_batch(batch: BatchPlan) -> str:
    """Return the flags of about half the micro-batch that keep the effective batch, if any."""
    share = batch.effective_batch_size // batch.num_devices
    half = batch.per_device_train_batch_size // 2
    smaller = next((rows for rows in range(half, 0, -1) if share % rows == 0), None)
    if smaller is None:
        return ""
    return (
        f"--per-device-train-batch-size {smaller} --gradient-accumulation-steps "
        f"{share // smaller} keeps the same effective batch; "
    )
