"""Whether a run fits in memory: asked when it is planned, and again right before it is loaded."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from lorafit.config.batch import BatchPlan
from lorafit.config.layers import Origin, Resolved
from lorafit.config.parallelism import why_not_sharded
from lorafit.config.schema import Settings
from lorafit.errors import MemoryFitError
from lorafit.hardware.detect import detect_device
from lorafit.hardware.info import DeviceInfo
from lorafit.hardware.visible import torch_name
from lorafit.memory.data_parallel import with_exchange
from lorafit.memory.estimate import TIGHT_FRACTION, Estimate
from lorafit.memory.planner import (
    PAD_TO_MULTIPLE,
    FittedPlan,
    estimate_with_cache,
    plan_to_fit,
)
from lorafit.model.source import ModelSource
from lorafit.units import GIB, format_bytes

PLANNED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "checkpointed_layers",
)
"""The settings that the planner chooses."""
_MAC_SYSTEM_BYTES = 4 * GIB
"""What macOS and its applications need for themselves."""
_OVERRIDE = "--allow-oom-attempt tries it all the same"


def wants_planner(resolved: Resolved) -> bool:
    """Return whether the preset leaves the micro-batch to the planner: its default row does.

    Nothing that the planner would change may have been asked for: what a person sets stays.
    """
    row = resolved.row
    is_left_open = row is not None and row.leaves_micro_batch
    return is_left_open and not any(map(resolved.is_explicit, PLANNED))


class StepEstimate(Protocol):
    """The memory of a process's own tensors; `num_shards` processes hold the base together."""

    def __call__(
        self,
        settings: Settings,
        model_config: dict[str, Any],
        device: DeviceInfo,
        num_shards: int = 1,
        /,
    ) -> Estimate:
        """Return the estimate."""


def fit_to_memory(
    resolved: Resolved,
    batch: BatchPlan,
    config: dict[str, Any],
    device: DeviceInfo,
    row_lengths: Sequence[int],
    estimate: StepEstimate = estimate_with_cache,
) -> tuple[Resolved, FittedPlan]:
    """Return the settings with the fastest micro-batch and checkpointing that fit, and the search.

    The effective batch stays what it is; where nothing fits, so do the settings. Several processes
    that may share the base weights do so where no plan fits without. `config` is config.json of
    the base model, see `model_config`.
    """
    settings = resolved.settings

    def search(is_sharded: bool) -> FittedPlan:
        num_shards = batch.num_devices if is_sharded else 1
        return plan_to_fit(
            settings,
            config,
            device,
            batch.effective_batch_size,
            row_lengths=row_lengths,
            num_devices=batch.num_devices,
            is_sharded=is_sharded,
            estimate=lambda asked, config, device: estimate(asked, config, device, num_shards),
        )

    fitted = search(settings.parallelism == "fsdp" and batch.num_devices > 1)
    may_share = settings.parallelism == "auto" and not why_not_sharded(settings)
    if fitted.settings is None and may_share and batch.num_devices > 1:
        fitted = search(True)
    if fitted.settings is None:
        return resolved, fitted
    settings = fitted.settings.model_copy(update={"effective_batch_size": None})
    origin = Origin("hardware", "planner")
    origins = {**resolved.origins, **dict.fromkeys(PLANNED, origin)}
    return replace(resolved, settings=settings, origins=origins), fitted


def model_config(source: ModelSource) -> dict[str, Any]:
    """Return config.json with the number format that the weights really have on disk."""
    config = {**source.config}
    if source.weights is not None:
        config["dtype"] = source.weights.stored_dtype
    return config


def estimate_run(
    settings: Settings,
    batch: BatchPlan,
    source: ModelSource,
    device: DeviceInfo,
    longest_row: int,
    num_shards: int = 1,
) -> Estimate:
    """Return the peak memory of a process of the run as it will really be batched.

    What several processes exchange is not in it: see `data_parallel.with_exchange`.

    Args:
        settings: the settings of the run.
        batch: its micro-batch and accumulation.
        source: the base model.
        device: where it runs.
        longest_row: tokens of the longest row of the data, at most max_length.
        num_shards: processes that hold the base weights together.
    """
    padded = -(-longest_row // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    real = settings.model_copy(
        update={
            "per_device_train_batch_size": batch.per_device_train_batch_size,
            "gradient_accumulation_steps": batch.gradient_accumulation_steps,
            "effective_batch_size": None,
            "max_length": padded,
        }
    )
    return estimate_with_cache(real, model_config(source), device, num_shards)


def estimate_sharded_run(
    settings: Settings,
    batch: BatchPlan,
    source: ModelSource,
    device: DeviceInfo,
    longest_row: int,
    num_trainable: int,
) -> Estimate:
    """Return the peak memory of a process that shares the base weights with the others.

    Args:
        settings: the settings of the run.
        batch: its micro-batch, accumulation and devices.
        source: the base model.
        device: where each process runs.
        longest_row: tokens of the longest row of the data, at most max_length.
        num_trainable: trainable parameters.
    """
    own = estimate_run(settings, batch, source, device, longest_row, batch.num_devices)
    return with_exchange(
        own, num_trainable, device, num_processes=batch.num_devices, parallelism="fsdp"
    )


def require_fit(estimate: Estimate, device: DeviceInfo, alternative: str | None) -> None:
    """Refuse a run that would run out of memory.

    Args:
        estimate: what the run takes.
        device: where it would run.
        alternative: flags of the nearest plan that fits, if there is one.

    Raises:
        MemoryFitError: with what it takes, what there is, and the alternative.
    """
    if estimate.verdict != "exceeds":
        return
    peak = estimate.peak.process_bytes
    raise MemoryFitError(
        f"this run takes {format_bytes(peak)} at its peak ({estimate.peak.phase.replace('_', ' ')})"
        f", and {device.name} has {format_bytes(estimate.capacity_bytes)}: it would run out of "
        "memory",
        hint=f"add {alternative}\n{_OVERRIDE}" if alternative else _OVERRIDE,
    )


def fit_warnings(estimate: Estimate, device: DeviceInfo) -> list[str]:
    """Return what is narrow about a run that fits, as sentences."""
    found = []
    headroom = format_bytes(max(0, estimate.headroom_bytes))
    if estimate.verdict == "tight":
        found.append(
            f"memory is tight: {headroom} stay free, less than {TIGHT_FRACTION:.0%} of "
            f"{format_bytes(estimate.capacity_bytes)}; close other programs that use {device.name}"
        )
    free = device.free_bytes
    if device.kind == "mps" and free is not None:
        rest = free - estimate.peak.process_bytes
        if rest < _MAC_SYSTEM_BYTES:
            found.append(
                f"{format_bytes(max(0, rest))} would be left for macOS and other programs, less "
                f"than the {format_bytes(_MAC_SYSTEM_BYTES)} they need: the Mac will swap"
            )
    return found


def verify_free_memory(estimate: Estimate, device: DeviceInfo) -> None:
    """Look at the memory that is free on the device now, right before the model is loaded.

    Raises:
        MemoryFitError: other processes have taken what the run needs.
    """
    now = detect_device(torch_name(device))
    needed = estimate.peak.process_bytes
    if now.free_bytes is not None and now.free_bytes < needed:
        raise MemoryFitError(
            f"the run takes {format_bytes(needed)}, but only {format_bytes(now.free_bytes)} of "
            f"{now.name} are free now: other processes hold the rest",
            hint=f"close them (lorafit doctor lists them), then run it again; {_OVERRIDE}",
        )
