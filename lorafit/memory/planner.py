"""Planning a run to the memory it may use: the fastest micro-batch and checkpointing that fit.

The planner joins the cost model, the closed form and the exact estimate into a search. What it
changes is how an optimizer step is split, never what it computes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from lorafit.config.padding import wants_block_attention
from lorafit.config.parallelism import why_not_sharded
from lorafit.config.schema import Settings
from lorafit.hardware.capabilities import check_supported
from lorafit.hardware.catalog import CATALOG
from lorafit.hardware.info import DeviceInfo
from lorafit.memory.architecture import read_architecture
from lorafit.memory.cache import cached_estimate
from lorafit.memory.closed_form import estimate_quickly
from lorafit.memory.cost import Throughput, Workload, expected_longest, step_seconds
from lorafit.memory.data_parallel import with_exchange
from lorafit.memory.device import compute_dtype
from lorafit.memory.estimate import Estimate, estimate_memory
from lorafit.memory.search import Candidate, Rejected, SearchResult, candidates, find_plan
from lorafit.units import format_bytes

PAD_TO_MULTIPLE = 8
"""Training pads rows to a multiple of this many tokens."""
_UNKNOWN_DEVICE = Throughput(matmul_flops=70e12, bandwidth=600e9)
"""Of a GPU that is not in the catalog: an A10G's. Only the ratio matters for the ranking."""
_FP32_SHARE = 1 / 8
"""Speed of fp32 products on NVIDIA GPUs as a share of the 16-bit ones, a round figure."""

ExactEstimate = Callable[[Settings, dict[str, Any], DeviceInfo], Estimate]


@dataclass(frozen=True)
class FittedPlan:
    """How to split an optimizer step so that it fits, or that nothing does, and why."""

    settings: Settings | None
    """The settings with micro-batch, accumulation and checkpointing as planned; None when no plan
    fits."""
    estimate: Estimate | None
    """The exact estimate of the plan, or of the smallest one when none fits."""
    rejected: tuple[Rejected, ...]
    """Plans that were not taken: of each other micro-batch the best, and the next faster one."""
    num_layers: int
    reason: str
    """What was chosen and why, as one sentence."""

    def rejections(self) -> list[str]:
        """Return the rejected plans as sentences."""
        return [
            f"{entry.candidate.describe(self.num_layers)}: {entry.reason}"
            for entry in self.rejected
        ]


def plan_to_fit(
    settings: Settings,
    model_config: dict[str, Any],
    device: DeviceInfo,
    effective_batch_size: int,
    *,
    row_lengths: Iterable[int] | None = None,
    memory_fraction: float | None = None,
    num_devices: int = 1,
    is_sharded: bool = False,
    estimate: ExactEstimate | None = None,
) -> FittedPlan:
    """Return the fastest plan whose exact estimate fits the share of the device's memory.

    Args:
        settings: every setting of the run; micro-batch, accumulation and checkpointing are chosen.
        model_config: config.json of the base model.
        device: the device, detected or planned for.
        effective_batch_size: rows of an optimizer step, over all devices.
        row_lengths: tokens of the data's rows; without them all rows have max_length.
        memory_fraction: share of the device's memory to use; by default the setting's.
        num_devices: devices that share the effective batch.
        is_sharded: they share the base weights too.
        estimate: answers exactly, of one process's own tensors; by default a trace, through the
            cache of stored estimates.

    Raises:
        ConfigError, DeviceError, ModelError: as `estimate_memory`.
    """
    fraction = settings.memory_fraction if memory_fraction is None else memory_fraction
    lengths = tuple(row_lengths) if row_lengths is not None else (settings.max_length,)
    longest = -(-max(lengths) // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    base = settings.model_copy(update={"effective_batch_size": None, "max_length": longest})
    arch = read_architecture(model_config)
    num_shards = num_devices if is_sharded else 1
    answer = estimate or partial(estimate_with_cache, num_shards=num_shards)
    budget = int(fraction * device.usable_bytes)
    options = candidates(effective_batch_size, num_devices, arch.num_layers)
    if not options:
        reason = f"an effective batch of {effective_batch_size} does not split over {num_devices} "
        return FittedPlan(None, None, (), arch.num_layers, f"{reason}devices")

    def apply(candidate: Candidate) -> Settings:
        return _apply(base, candidate, arch.num_layers)

    @cache
    def ask(candidate: Candidate) -> Estimate:
        alone = answer(apply(candidate), model_config, device)
        if num_devices == 1:
            return alone
        return with_exchange(
            alone,
            alone.breakdown["adapter_bytes"] // 4,
            device,
            num_processes=num_devices,
            parallelism="fsdp" if is_sharded else "ddp",
        )

    def screen(candidate: Candidate) -> int:
        quick = estimate_quickly(apply(candidate), model_config, device, num_shards)
        return quick.peak.process_bytes

    found = find_plan(
        options,
        budget_bytes=budget,
        cost=_cost(base, model_config, device, lengths),
        screen=screen,
        estimate=lambda c: ask(c).peak.process_bytes,
    )
    reason = _reason(found, len(options), arch.num_layers, fraction, device)
    exact = ask(found.chosen or found.smallest)
    if found.chosen is None:
        return FittedPlan(None, exact, found.rejected, arch.num_layers, reason)
    planned = _apply(settings, found.chosen, arch.num_layers)
    return FittedPlan(planned, exact, found.rejected, arch.num_layers, reason)


def nearest_fitting(
    settings: Settings,
    model_config: dict[str, Any],
    device: DeviceInfo,
    effective_batch_size: int,
    *,
    num_devices: int = 1,
    estimate: ExactEstimate | None = None,
) -> str | None:
    """Return the flags that turn a run that does not fit into one that does, or None.

    First with the same weights, to the last byte if need be; failing that shared among several
    processes; failing that with NF4 weights, where they are not quantized yet.
    """
    for attempt in _attempts(settings, device, num_devices):
        for fraction in (settings.memory_fraction, 1.0):
            plan = plan_to_fit(
                attempt,
                model_config,
                device,
                effective_batch_size,
                memory_fraction=fraction,
                num_devices=num_devices,
                is_sharded=attempt.parallelism == "fsdp",
                estimate=estimate,
            )
            if plan.settings is not None:
                return flags_between(settings, plan.settings)
            if plan.estimate is None or plan.estimate.headroom_bytes < 0:
                break
    return None


def _attempts(settings: Settings, device: DeviceInfo, num_devices: int) -> list[Settings]:
    """Return the settings to look for a plan with, the nearest first."""
    attempts = [settings]
    quantized = settings.model_copy(update={"quantization": "nf4"})
    if settings.quantization == "none" and not check_supported(device, quantized):
        attempts.append(quantized)
    if num_devices == 1 or settings.parallelism == "fsdp":
        return attempts
    found = []
    for attempt in attempts:
        shared = attempt.model_copy(update={"parallelism": "fsdp"})
        found += [attempt] if why_not_sharded(attempt) else [attempt, shared]
    return found


def flags_between(before: Settings, after: Settings) -> str:
    """Return the command-line flags that change what the planner changes.

    Micro-batch and accumulation are always named: presets may set an effective batch.
    """
    flags = [
        f"--per-device-train-batch-size {after.per_device_train_batch_size}",
        f"--gradient-accumulation-steps {after.gradient_accumulation_steps}",
    ]
    if after.gradient_checkpointing != before.gradient_checkpointing:
        flags.append(f"--{'' if after.gradient_checkpointing else 'no-'}gradient-checkpointing")
    layers = after.checkpointed_layers
    if layers is not None and layers != before.checkpointed_layers:
        flags.append(f"--checkpointed-layers {layers}")
    if after.parallelism != before.parallelism:
        flags.append(f"--parallelism {after.parallelism}")
    if after.quantization != before.quantization:
        flags.append(f"--quantization {after.quantization}")
    return " ".join(flags)


def estimate_with_cache(
    settings: Settings, model_config: dict[str, Any], device: DeviceInfo, num_shards: int = 1
) -> Estimate:
    """Return the exact estimate, from the cache if the question was asked before.

    `num_shards` processes hold the base weights together; what they exchange is not in it.
    """
    return cached_estimate(
        settings,
        model_config,
        device,
        lambda: estimate_memory(settings, model_config, device, num_shards=num_shards),
        variant=f"shards={num_shards}" if num_shards > 1 else "",
    )


def throughput(device: DeviceInfo, dtype: str) -> Throughput:
    """Return what a device does at best in a number format, by the catalog."""
    entry = CATALOG.get(device.catalog_key or ("cpu" if device.kind == "cpu" else ""))
    best = _UNKNOWN_DEVICE
    if entry is not None:
        best = Throughput(entry.peak_matmul_flops, entry.memory_bandwidth_bytes_per_second)
    share = _FP32_SHARE if dtype == "float32" and device.kind == "cuda" else 1.0
    return Throughput(best.matmul_flops * share, best.bandwidth)


def _apply(settings: Settings, candidate: Candidate, num_layers: int) -> Settings:
    layers = candidate.checkpointed_layers
    is_partial = 0 < layers < num_layers
    # All layers are said as None, unless the settings name a number that would stay in force.
    all_layers = num_layers if settings.checkpointed_layers is not None and layers else None
    return settings.model_copy(
        update={
            "per_device_train_batch_size": candidate.micro_batch,
            "gradient_accumulation_steps": candidate.accumulation,
            "gradient_checkpointing": layers > 0,
            "checkpointed_layers": layers if is_partial else all_layers,
        }
    )


def _cost(
    settings: Settings, model_config: dict[str, Any], device: DeviceInfo, lengths: tuple[int, ...]
) -> Callable[[Candidate], float]:
    """Return the modelled seconds of a step, as a function of the plan."""
    arch = read_architecture(model_config)
    dtype = compute_dtype(settings, model_config, device).value
    itemsize = 4 if dtype == "float32" else 2
    # Four-bit weights are read, written unpacked, and read again.
    per_weight = {"none": itemsize, "nf4": 0.5 + 2 * itemsize, "int8": 1}[settings.quantization]
    work = Workload(
        num_layers=arch.num_layers,
        layer_parameters=arch.layer_linear_weights,
        head_parameters=arch.embedding_parameters,
        attention_size=arch.query_size,
        layer_bytes=per_weight * arch.layer_linear_weights,
        row_lengths=lengths,
    )
    speed = throughput(device, dtype)
    longest = cache(lambda micro_batch: expected_longest(lengths, micro_batch))
    # Packing is left to a person, as it changes what the effective batch counts; without padding
    # it has little left to gain.
    end_to_end = wants_block_attention(settings) and device.kind != "mps"

    def seconds(candidate: Candidate) -> float:
        return step_seconds(
            work,
            speed,
            candidate.micro_batch,
            candidate.accumulation,
            candidate.checkpointed_layers,
            longest(candidate.micro_batch),
            end_to_end=end_to_end,
        )

    return seconds


def _reason(
    found: SearchResult, num_options: int, num_layers: int, fraction: float, device: DeviceInfo
) -> str:
    limit = f"{fraction:.0%} of {format_bytes(device.usable_bytes)}"
    if found.chosen is None:
        smallest = found.smallest.describe(num_layers)
        return (
            f"none of {num_options} plans fits {limit}: even {smallest} takes "
            f"{format_bytes(found.peak_bytes)}"
        )
    return (
        f"{found.chosen.describe(num_layers)}: the fastest of {num_options} plans that fits "
        f"{limit} (takes {format_bytes(found.peak_bytes)})"
    )
