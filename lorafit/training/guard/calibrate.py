"""A calibration step: the largest step of a run, run twice before training to measure its memory.

The first makes the optimizer's state, the second runs beside it. Then everything is as it was:
adapters, random numbers, no optimizer and no gradient, so that training computes what it would
have computed without.
"""

import contextlib
import gc
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorafit.data.micro_batches import MicroBatchLimits, StepRows, gather_step
from lorafit.hardware.info import Choice
from lorafit.memory.calibration import (
    Combination,
    Measurement,
    PeakBytes,
    Source,
    add_measurement,
    read_record,
)
from lorafit.memory.device import process_context_bytes
from lorafit.model.step import Batch, make_optimizer, trainable_parameters, training_step
from lorafit.training.checkpoints.state import RandomState
from lorafit.training.guard.memory_use import MemoryProbe, memory_probe
from lorafit.training.guard.oom import is_out_of_memory
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from peft import PeftModel

    from lorafit.training.planning.run_plan import RunPlan


def should_calibrate(plan: "RunPlan") -> Choice[bool]:
    """Return whether to measure the memory of this run's largest step before it, and why."""
    device = plan.device
    if device.kind != "cuda":
        return Choice(False, f"no calibration step: {device.name} has no context of its own")
    if plan.estimate.verdict == "exceeds":
        return Choice(False, "no calibration step: the estimate says that it would not fit")
    record = read_record(Combination.of(device, plan.settings.kernels))
    known = record.calibration(device.name)
    if known is not None:
        return Choice(False, known.reason)
    return Choice(
        True,
        f"calibration step: none was measured yet on {device.name} with this driver, these "
        "libraries and kernels",
    )


def calibrate_if_new(
    plan: "RunPlan", model: "PeftModel", device: torch.device, note: Callable[[str], None]
) -> None:
    """Run the calibration step where it teaches something, and tell what it found.

    Args:
        plan: the decided run.
        model: the model, ready to train.
        device: where it lies.
        note: told each thing that a person should know.
    """
    choice = should_calibrate(plan)
    if not choice.value:
        return
    note(choice.reason)
    try:
        measured = calibrate(plan, model, device, memory_probe(device))
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        note("the calibration step ran out of memory: nothing was learned from it")
        return
    note(_sentence(measured))
    problem = add_measurement(Combination.of(plan.device, plan.settings.kernels), measured)
    if problem is not None:
        note(problem)


def calibrate(
    plan: "RunPlan", model: "PeftModel", device: torch.device, probe: MemoryProbe
) -> Measurement:
    """Run the largest step of the plan twice, and return its peak; nothing else changes.

    Raises:
        RuntimeError: memory ran out, or whatever else a step of this run would raise.
    """
    rows = _largest_micro_batch(plan)
    with _unchanged(model, probe):
        batch = _collate(plan, rows, device)
        probe.start()
        _run_steps(plan, model, batch, rows.num_targets, device)
        peak = probe.stop()
        del batch
    return _measurement(plan, "calibration step", peak)


def remember_peak(plan: "RunPlan", peak_bytes: int) -> str | None:
    """Append the measured peak of a finished run to the record of its combination.

    Args:
        plan: the run.
        peak_bytes: reserved memory on CUDA, elsewhere the process's.

    Returns:
        Why it could not be stored, or None.
    """
    is_cuda = plan.device.kind == "cuda"
    peak = PeakBytes(None, peak_bytes, None) if is_cuda else PeakBytes(None, None, peak_bytes)
    measured = _measurement(plan, "finished run", peak)
    return add_measurement(Combination.of(plan.device, plan.settings.kernels), measured)


def _measurement(plan: "RunPlan", source: Source, measured: PeakBytes) -> Measurement:
    peak = plan.estimate.peak
    # The context of the table: what an earlier calibration added is not part of the prediction.
    process = peak.reserved_bytes + process_context_bytes(plan.device)[0]
    predicted = PeakBytes(peak.allocated_bytes, peak.reserved_bytes, process)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Measurement(now, source, plan.settings.model, predicted, measured)


def _sentence(found: Measurement) -> str:
    parts = []
    for name, residual in found.residuals().items():
        if residual is not None:
            part = name.removesuffix("_bytes")
            parts.append(f"{part} {'+' if residual >= 0 else '-'}{format_bytes(abs(residual))}")
    return f"calibration step: measured less predicted: {', '.join(parts) or 'nothing measured'}"


# -- The step


def _largest_micro_batch(plan: "RunPlan") -> StepRows:
    """Return the longest rows, or bins, that go through the device together."""
    batching = plan.batching
    dataset = batching.dataset(plan.data.train)
    packing = batching.packing
    lengths = packing.tokens if packing is not None else plan.data.train.lengths
    chosen = longest_together(lengths, batching.limits)
    return gather_step([dataset[index] for index in chosen])


def longest_together(lengths: Sequence[int], limits: MicroBatchLimits) -> list[int]:
    """Return which rows, by index, make the largest micro-batch within the limits."""
    import numpy as np

    longest_first = np.argsort(-np.asarray(lengths), kind="stable")
    if limits.tokens is None:
        return [int(index) for index in longest_first[: limits.units]]
    chosen: list[int] = []
    room, shortest = limits.tokens, min(lengths)
    for index in map(int, longest_first):
        if chosen and room < shortest:
            break
        if not chosen or lengths[index] <= room:
            chosen.append(index)
            room -= lengths[index]
    return chosen


def _collate(plan: "RunPlan", rows: StepRows, device: torch.device) -> Batch:
    collate = plan.batching.collator(
        plan.pad.token_id, locate_targets=plan.model.chunked_loss.value
    )
    batch = collate(rows.rows_of(range(len(rows.units))))
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _run_steps(
    plan: "RunPlan", model: "PeftModel", batch: Batch, num_targets: int, device: torch.device
) -> None:
    settings = plan.settings
    optimizer = make_optimizer(model, settings)
    accumulated = [batch] * min(plan.batch.gradient_accumulation_steps, 2)
    half = plan.dtype.value == "float16" and device.type == "cuda"
    with torch.autocast("cuda", torch.float16) if half else contextlib.nullcontext():
        for batches in ([batch], accumulated):
            training_step(model, optimizer, batches, num_targets * len(batches), settings)


@contextlib.contextmanager
def _unchanged(model: "PeftModel", probe: MemoryProbe) -> Iterator[None]:
    """Put back what steps change: trained parameters, gradients, generators, cached memory."""
    trained = trainable_parameters(model)
    # Copies on the host: the device's peak is to be that of the run.
    before = [parameter.detach().to("cpu", copy=True) for parameter in trained]
    generators, python, numpy = RandomState.capture(), random.getstate(), np.random.get_state()
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        model.train(was_training)
        generators.restore()
        random.setstate(python)
        np.random.set_state(numpy)
        # What the optimizer held may hang in a cycle of references.
        gc.collect()
        probe.release()
