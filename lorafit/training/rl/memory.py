"""Memory of grpo and dpo: the traced training step over the rows that a micro-batch really has.

grpo: a prompt becomes `num_generations` rows of prompt and answer; before the step the answers are
written, with the weights, the optimizer's state and a cache of keys and values in memory and no
activations, so that the peak is the larger of the two phases. dpo: a pair is two rows; the
reference's log-probabilities are computed without gradient by the same weights with the adapter
off, in memory that the step's activations take before and after it.

Cache of keys and values: 2 x layers x key/value heads x head size x bytes a number, for each token
(Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention", section 3). transformers' cache grows by concatenation, so that one layer's keys
or values are there twice for a moment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lorafit.config.batch import BatchPlan
from lorafit.config.layers import Origin, Resolved
from lorafit.config.schema import Settings
from lorafit.hardware.info import DeviceInfo
from lorafit.memory.architecture import Architecture, read_architecture
from lorafit.memory.device import compute_dtype
from lorafit.memory.estimate import Estimate, Peak, verdict_of, verdict_reason
from lorafit.memory.planner import PAD_TO_MULTIPLE, FittedPlan, estimate_with_cache
from lorafit.model.source import ModelSource
from lorafit.training.planning.fit import StepEstimate, estimate_run, fit_to_memory, model_config
from lorafit.units import MIB, format_bytes

_FP32_BYTES = 4
_LIBRARIES_BYTES = 64 * MIB
"""What TRL and datasets take of a process that computes on the CPU: 62 to 72 MiB were measured on
Linux with trl 1.16, beside what supervised training imports."""
_RESIDENT = ("weights_bytes", "adapter_bytes", "optimizer_bytes", "context_bytes")
"""Parts of a step's peak that are also there while answers are written."""


class Generation(NamedTuple):
    """Bytes that writing answers takes beside what is resident."""

    cache_bytes: int
    """Keys and values of all rows at full length, and one layer's copy as the cache grows."""
    logits_bytes: int
    """fp32 logits of the next token of each row, and the probabilities that are sampled from."""

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.cache_bytes + self.logits_bytes


def rows_per_unit(settings: Settings) -> int:
    """Return the rows of a training step that one row of the data becomes."""
    return {"sft": 1, "grpo": settings.num_generations, "dpo": 2}[settings.method]


def generation_memory(
    arch: Architecture, rows: int, tokens: int, bytes_per_number: int
) -> Generation:
    """Return what writing `rows` answers takes, `tokens` being prompt and answer of the longest."""
    layer = 2 * arch.num_key_value_heads * arch.head_dim * bytes_per_number * rows * tokens
    return Generation(
        cache_bytes=layer * arch.num_layers + layer // 2,
        logits_bytes=2 * _FP32_BYTES * rows * arch.vocab_size,
    )


def estimate_method_run(
    settings: Settings, batch: BatchPlan, source: ModelSource, device: DeviceInfo, longest: int
) -> Estimate:
    """Return the peak memory of a run of any method.

    Args:
        settings: the settings of the run.
        batch: its micro-batch, in rows of the data, and accumulation.
        source: the base model.
        device: where it runs.
        longest: tokens of the longest sequence; for grpo, of prompt and answer.
    """

    def step(rows: int) -> Estimate:
        wide = replace(batch, per_device_train_batch_size=rows)
        return estimate_run(settings, wide, source, device, longest)

    asked = settings.model_copy(
        update={
            "per_device_train_batch_size": batch.per_device_train_batch_size,
            "max_length": longest,
        }
    )
    return estimate_with_method(asked, model_config(source), device, step)


def estimate_with_method(
    settings: Settings,
    config: Mapping[str, Any],
    device: DeviceInfo,
    step_of: Callable[[int], Estimate],
) -> Estimate:
    """Return the estimate of a run of any method from those of training steps.

    Args:
        settings: the settings, with the micro-batch in rows of the data and `max_length` the
            tokens of the longest sequence.
        config: config.json of the base model.
        device: where it runs.
        step_of: the estimate of a supervised step of so many rows a micro-batch.
    """
    rows = settings.per_device_train_batch_size * rows_per_unit(settings)
    step = step_of(rows)
    if settings.method == "sft":
        return step
    if device.kind == "cpu":
        step = _with_libraries(step, device)
    counted = _step_sentence(settings, rows)
    if settings.method == "dpo":
        return replace(step, reasons=(*step.reasons[:-1], counted, step.reasons[-1]))
    return _with_generation(settings, step, counted, config, device, rows)


def _with_libraries(step: Estimate, device: DeviceInfo) -> Estimate:
    process = step.peak.process_bytes + _LIBRARIES_BYTES
    context = step.breakdown["context_bytes"] + _LIBRARIES_BYTES
    verdict = verdict_of(process, step.capacity_bytes, False)
    return replace(
        step,
        peak=replace(step.peak, process_bytes=process),
        breakdown={**step.breakdown, "context_bytes": context},
        verdict=verdict,
        reasons=(*step.reasons[:-1], verdict_reason(verdict, process, device)),
    )


def _step_sentence(settings: Settings, rows: int) -> str:
    units, longest = settings.per_device_train_batch_size, settings.max_length
    if settings.method == "dpo":
        return (
            f"counted: a training step on {rows} rows of {longest} tokens, chosen and rejected of "
            f"{units} pairs; the reference's log-probabilities come from the same weights with "
            "the adapter off and without gradient, within the step's peak"
        )
    return (
        f"counted: a training step on {rows} rows of {longest} tokens, {settings.num_generations} "
        f"answers to each of {units} prompts"
    )


def _with_generation(
    settings: Settings,
    step: Estimate,
    counted: str,
    config: Mapping[str, Any],
    device: DeviceInfo,
    rows: int,
) -> Estimate:
    arch = read_architecture(config)
    is_wide = compute_dtype(settings, dict(config), device).value == "float32"
    writing = generation_memory(arch, rows, settings.max_length, 4 if is_wide else 2)
    resident = sum(step.breakdown.get(name, 0) for name in _RESIDENT)
    process = resident + writing.total_bytes
    sentence = (
        f"{counted}; before it, answers are written with {format_bytes(writing.cache_bytes)} of "
        f"keys and values and {format_bytes(writing.logits_bytes)} of logits beside "
        f"{format_bytes(resident)} that stay: {format_bytes(process)}, "
    )
    if process <= step.peak.process_bytes:
        sentence += "less than the step's peak"
        return replace(step, reasons=(*step.reasons[:-1], sentence, step.reasons[-1]))
    context = step.breakdown.get("context_bytes", 0)
    peak = Peak(process - context, process - context, process, "generation")
    verdict = verdict_of(process, step.capacity_bytes, False)
    parts = {name: (n if name in _RESIDENT else 0) for name, n in step.breakdown.items()}
    parts["workspace_bytes"] = writing.cache_bytes
    parts["logits_bytes"] = writing.logits_bytes
    return replace(
        step,
        peak=peak,
        breakdown=parts,
        verdict=verdict,
        reasons=(
            *step.reasons[:-1],
            sentence + "more than the step's peak",
            verdict_reason(verdict, process, device),
        ),
    )


def fit_run(
    resolved: Resolved,
    batch: BatchPlan,
    config: dict[str, Any],
    device: DeviceInfo,
    lengths: Sequence[int],
    estimate_step: StepEstimate = estimate_with_cache,
) -> tuple[Resolved, FittedPlan]:
    """Return the settings of a run of any method with a micro-batch that fits, and the search.

    Args:
        resolved: the settings, as they were asked for.
        batch: the effective batch, which stays what it is, and the devices.
        config: config.json of the base model, see `model_config`.
        device: where each process runs.
        lengths: tokens of each row of the data, or of each bin of packed rows.
        estimate_step: the memory of a training step.
    """
    fit = fit_to_memory if resolved.settings.method == "sft" else _fit_method
    return fit(resolved, batch, config, device, lengths, estimate_step)


def _fit_method(
    resolved: Resolved,
    batch: BatchPlan,
    config: dict[str, Any],
    device: DeviceInfo,
    lengths: Sequence[int],
    estimate_step: StepEstimate,
) -> tuple[Resolved, FittedPlan]:
    """Return the settings with the largest micro-batch that fits, and how it was searched for.

    A micro-batch without checkpointing is taken before one with it: it computes nothing twice. The
    effective batch stays what it is; where nothing fits, so do the settings. `config` is
    config.json of the base model, `lengths` the tokens of each row of the data.
    """
    settings = resolved.settings
    longest = max(lengths)
    padded = -(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    num_layers = read_architecture(config).num_layers
    effective = batch.effective_batch_size
    sizes = [n for n in range(min(effective, len(lengths)), 0, -1) if effective % n == 0]
    limit = settings.memory_fraction * device.usable_bytes
    factor = rows_per_unit(settings)
    estimate, tried = None, 0
    for checkpoints in (False, True):
        for size in sizes:
            changed: dict[str, Any] = {
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": effective // size,
                "gradient_checkpointing": checkpoints,
                "checkpointed_layers": None,
                "effective_batch_size": None,
            }
            candidate = settings.model_copy(update=changed)
            step = candidate.model_copy(update={"max_length": padded})

            def step_of(rows: int, step: Settings = step) -> Estimate:
                wide = step.model_copy(update={"per_device_train_batch_size": rows})
                return estimate_step(wide, config, device)

            asked = candidate.model_copy(update={"max_length": longest})
            estimate = estimate_with_method(asked, config, device, step_of)
            tried += 1
            if estimate.peak.process_bytes > limit:
                continue
            origins = {
                **resolved.origins,
                **dict.fromkeys(changed, Origin("hardware", "planner")),
            }
            reason = (
                f"micro-batch {size} ({size * factor} rows a step) "
                f"{'with' if checkpoints else 'without'} checkpointing: the first of "
                f"{2 * len(sizes)} plans, from the largest, that fits "
                f"{settings.memory_fraction:.0%} of {format_bytes(device.usable_bytes)}"
            )
            fitted = FittedPlan(candidate, estimate, (), num_layers, reason)
            return replace(resolved, settings=candidate, origins=origins), fitted
    reason = f"none of {tried} plans fits {settings.memory_fraction:.0%} of the device's memory"
    return resolved, FittedPlan(None, estimate, (), num_layers, reason)
