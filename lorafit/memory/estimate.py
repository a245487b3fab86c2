"""The peak memory of a run before it starts: what it takes, of what it consists, whether it fits.

The answer comes from a trace of the model and step that training runs (`trace`), fed through the
replica of the allocator (`replay`), plus the context of the device, which no allocator counts.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, ModelError, Problem
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.memory.allocator import CachingAllocator
from lorafit.memory.calibration import Combination, read_record
from lorafit.memory.device import (
    compute_dtype,
    gpu_traits,
    hardware_facts,
    kept_bytes,
    process_context_bytes,
)
from lorafit.memory.events import Category, Trace
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.replay import Replay, replay
from lorafit.text import excerpt
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SCHEMA_VERSION = 1
TIGHT_FRACTION = 0.1
"""Headroom below this share of the capacity is tight: other processes and longer rows eat it."""

Verdict = Literal["fits", "tight", "exceeds"]


@dataclass(frozen=True)
class Peak:
    """The largest figures of a run, in bytes, and the phase in which most is allocated."""

    allocated_bytes: int
    """As `torch.cuda.max_memory_allocated`."""
    reserved_bytes: int
    """As `torch.cuda.max_memory_reserved`."""
    process_bytes: int
    """As nvidia-smi shows for the process: reserved memory and the context."""
    phase: str


@dataclass(frozen=True)
class Estimate:
    """The answer of `lorafit estimate-memory`."""

    model: str
    hardware: dict[str, Any]
    settings: dict[str, Any]
    peak: Peak
    breakdown: dict[str, int]
    """Bytes by part; they add up to `peak.process_bytes`. `gathered_bytes` is there only where
    several processes share the base weights."""
    capacity_bytes: int
    verdict: Verdict
    reasons: tuple[str, ...]
    elapsed_seconds: float
    calibrated: bool = False
    """What the process takes beside its tensors was measured on this machine."""
    processes: Mapping[str, Any] = field(
        default_factory=lambda: {"count": 1, "parallelism": "none"}
    )
    """How many processes train, each with the memory that this estimate tells of, and what they do
    with the base weights; of several, also what each has for the others, in bytes."""
    cached: bool = field(default=False, compare=False)

    @property
    def headroom_bytes(self) -> int:
        """Capacity less the process; negative when the run does not fit."""
        return self.capacity_bytes - self.peak.process_bytes

    def document(self) -> dict[str, Any]:
        """Return the JSON document of `estimate-memory --json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "hardware": self.hardware,
            "settings": self.settings,
            "peak": {
                "allocated_bytes": self.peak.allocated_bytes,
                "reserved_bytes": self.peak.reserved_bytes,
                "process_bytes": self.peak.process_bytes,
                "phase": self.peak.phase,
            },
            "breakdown": self.breakdown,
            "capacity_bytes": self.capacity_bytes,
            "headroom_bytes": self.headroom_bytes,
            "verdict": self.verdict,
            "calibrated": self.calibrated,
            "processes": dict(self.processes),
            "reasons": list(self.reasons),
            "elapsed_seconds": round(self.elapsed_seconds, 3),
        }


def estimate_memory(
    settings: Settings,
    model_config: dict[str, Any],
    device: DeviceInfo,
    *,
    plain_script: bool = False,
    expandable_segments: bool = False,
    num_shards: int = 1,
) -> Estimate:
    """Return the peak memory of training with `settings` on `device`, without reading a weight.

    Args:
        settings: every setting of the run.
        model_config: config.json of the base model.
        device: the device, detected or planned for.
        plain_script: estimate a plain transformers + PEFT loop instead of lorafit's training;
            see `trace.TraceRequest`.
        expandable_segments: as `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.
        num_shards: processes that hold the base weights together; what they exchange beside them
            is added by `data_parallel.with_exchange`.

    Raises:
        ConfigError: target_modules name what the model does not have.
        DeviceError: the device cannot compute in the number format that was asked for.
        ModelError: transformers does not accept the configuration.
    """
    start = time.monotonic()
    _refuse_unsupported(settings, device)
    dtype = compute_dtype(settings, model_config, device)
    gpu = gpu_traits(device)
    traced = _trace(settings, model_config, dtype.value, device, plain_script, num_shards)
    trace = traced.value
    context = _context(settings, device, plain_script)
    reasons = [
        f"{dtype.value}: {dtype.reason}",
        context.reason,
        traced.reason,
        *context.corrections,
        *_unknowns(settings, device, gpu, plain_script),
    ]
    measured = _replay(trace, None, expandable_segments)
    fits_by_releasing = False
    room = device.usable_bytes - context.num_bytes
    if gpu is not None and measured.stats.peak_reserved_bytes > room:
        limited = _replay(trace, room, expandable_segments)
        if limited.out_of_memory is None:
            fits_by_releasing, measured = True, limited
            reasons.append(
                "it fits only because PyTorch gives cached memory back and asks again "
                f"({limited.stats.num_alloc_retries} times), which is slow"
            )
    kept = kept_bytes(settings, device, sum(measured.bytes_at_peak[each] for each in _CHANGING))
    peak = _peak(measured, context.num_bytes, None if gpu is not None else kept)
    verdict = verdict_of(peak.process_bytes, device.usable_bytes, fits_by_releasing)
    reasons.append(verdict_reason(verdict, peak.process_bytes, device))
    return Estimate(
        model=settings.model,
        hardware=hardware_facts(device),
        settings=settings.model_dump(mode="json"),
        peak=peak,
        breakdown=_breakdown(measured, peak, context.num_bytes),
        capacity_bytes=device.usable_bytes,
        verdict=verdict,
        reasons=tuple(reasons),
        elapsed_seconds=time.monotonic() - start,
        calibrated=context.is_calibrated,
    )


_CHANGING = (Category.ACTIVATION, Category.LOGITS, Category.GRADIENT)


class _Context(NamedTuple):
    """What the process takes beside its tensors."""

    num_bytes: int
    reason: str
    corrections: tuple[str, ...]
    """What measurements on this machine made of it, or why they could not be read."""
    is_calibrated: bool


def _context(settings: Settings, device: DeviceInfo, plain_script: bool) -> _Context:
    num_bytes, reason = process_context_bytes(device)
    record = read_record(Combination.of(device, settings.kernels))
    calibration = None if plain_script else record.calibration(device.name)
    corrections = []
    if calibration is not None:
        num_bytes = calibration.apply(num_bytes)
        corrections.append(calibration.reason)
    if record.problem is not None:
        corrections.append(record.problem)
    return _Context(num_bytes, f"context: {reason}", tuple(corrections), calibration is not None)


def _unknowns(
    settings: Settings, device: DeviceInfo, gpu: GpuTraits | None, plain_script: bool
) -> list[str]:
    """Return what the estimate leaves out or cannot know, as sentences."""
    found = []
    if settings.optim.startswith("paged"):
        found.append(
            "paged optimizer states are left out: they are in managed memory, which moves to the "
            "host when the device is full"
        )
    if settings.quantization == "int8":
        found.append(
            "int8: inputs beyond the outlier threshold are kept in 16 bits; how many there are "
            "depends on the data, and none are counted"
        )
    if gpu is not None and gpu.compute_capability[0] in (9, 10) and _may_use_cudnn(settings):
        found.append(
            "attention runs in cuDNN on this GPU; its workspace is that of cuDNN's open frontend, "
            "and what the closed backend may add is not counted"
        )
    if device.kind == "cpu" and plain_script:
        found.append(
            "a plain script on a CPU holds about a fifth more: the C library keeps memory that is "
            "free again, unless it is told otherwise as lorafit's training does"
        )
    return found


def _may_use_cudnn(settings: Settings) -> bool:
    return settings.attn_implementation in ("auto", "sdpa")


def _refuse_unsupported(settings: Settings, device: DeviceInfo) -> None:
    if settings.attn_implementation == "flash_attention_2" and device.kind != "cuda":
        raise ConfigError(
            [
                Problem(
                    "attn_implementation",
                    f"flash_attention_2 needs an NVIDIA GPU, and {device.name} is none",
                    "attn_implementation=sdpa",
                )
            ]
        )


def trace_run(
    settings: Settings,
    model_config: dict[str, Any],
    device: DeviceInfo,
    *,
    plain_script: bool = False,
    num_shards: int = 1,
) -> Trace:
    """Return the trace that the estimate of the same question comes from.

    Raises:
        DeviceError: the device cannot compute in the number format that was asked for.
        ModelError: transformers does not accept the configuration.
    """
    dtype = compute_dtype(settings, model_config, device)
    return _trace(settings, model_config, dtype.value, device, plain_script, num_shards).value


def _trace(
    settings: Settings,
    model_config: dict[str, Any],
    dtype: str,
    device: DeviceInfo,
    plain_script: bool,
    num_shards: int,
) -> Choice[Trace]:
    import torch

    from lorafit.memory.trace import TraceRequest
    from lorafit.memory.trace_layers import trace_quickly

    request = TraceRequest(
        settings,
        parse_config(model_config, settings.model),
        getattr(torch, dtype),
        gpu_traits(device),
        plain_script=plain_script,
        on_cpu=device.kind == "cpu",
        capacity_bytes=device.usable_bytes,
        num_shards=num_shards,
    )
    return trace_quickly(request)


def parse_config(model_config: dict[str, Any], name: str) -> "PretrainedConfig":
    """Return transformers' configuration object for the content of a config.json.

    Raises:
        ModelError: transformers does not accept it.
    """
    from transformers import AutoConfig

    values = {key: value for key, value in model_config.items() if key != "model_type"}
    try:
        config: PretrainedConfig = AutoConfig.for_model(model_config["model_type"], **values)
    except Exception as problem:  # config classes raise their own validation errors
        raise ModelError(
            f"transformers does not accept its configuration: {excerpt(str(problem), 300)}",
            where=name,
        ) from None
    return config


def _replay(trace: Trace, capacity_bytes: int | None, expandable_segments: bool) -> Replay:
    allocator = CachingAllocator(capacity_bytes, expandable_segments=expandable_segments)
    return replay(trace, allocator)


def _peak(measured: Replay, context: int, kept: int | None) -> Peak:
    """Return the peak; `kept` is None where PyTorch's caching allocator decides what stays."""
    stats = measured.stats
    allocated = stats.peak_allocated_bytes
    reserved = stats.peak_reserved_bytes if kept is None else allocated + kept
    return Peak(allocated, reserved, reserved + context, measured.phase.name.lower())


def _breakdown(measured: Replay, peak: Peak, context: int) -> dict[str, int]:
    parts = measured.bytes_at_peak
    gathered = parts[Category.GATHERED]
    return {
        "weights_bytes": parts[Category.WEIGHTS],
        **({"gathered_bytes": gathered} if gathered else {}),
        "adapter_bytes": parts[Category.ADAPTER],
        "gradient_bytes": parts[Category.GRADIENT],
        "optimizer_bytes": parts[Category.OPTIMIZER],
        "activation_bytes": parts[Category.ACTIVATION],
        "logits_bytes": parts[Category.LOGITS],
        "workspace_bytes": parts[Category.WORKSPACE],
        "fragmentation_bytes": peak.reserved_bytes - peak.allocated_bytes,
        "context_bytes": context,
    }


def verdict_of(process_bytes: int, capacity_bytes: int, fits_by_releasing: bool) -> Verdict:
    """Return whether a process of this size fits; what fits only by giving back is tight."""
    if process_bytes > capacity_bytes:
        return "exceeds"
    if fits_by_releasing or capacity_bytes - process_bytes < TIGHT_FRACTION * capacity_bytes:
        return "tight"
    return "fits"


def verdict_reason(verdict: Verdict, process_bytes: int, device: DeviceInfo) -> str:
    """Return the verdict as a sentence with its numbers."""
    capacity = device.usable_bytes
    used, room = format_bytes(process_bytes), format_bytes(capacity)
    share = (capacity - process_bytes) / capacity
    if verdict == "exceeds":
        missing = format_bytes(process_bytes - capacity)
        return f"exceeds: {used} are {missing} more than the {room} that {device.name} can give"
    rest = f"{format_bytes(capacity - process_bytes)} ({share:.0%}) of {room} stay free"
    if verdict == "tight":
        return f"tight: {rest}, less than {TIGHT_FRACTION:.0%}"
    return f"fits: {rest}"
