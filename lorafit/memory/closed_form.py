"""The peak memory of a run by formulas: an answer in a millisecond, without torch.

What is allocated is derived, term by term, from what transformers, PEFT and autograd keep and
take. What the allocator reserves on top is fitted (`FITTED`) to traces, by
`bench/fit_closed_form.py`, never to GPUs. The result screens plans; `estimate` gives the exact
answer. DoRA's own tensors are left out.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lorafit.config.schema import Settings
from lorafit.hardware.info import DeviceInfo
from lorafit.memory.architecture import Architecture, read_architecture
from lorafit.memory.device import (
    compute_dtype,
    gpu_traits,
    hardware_facts,
    kept_bytes,
    process_context_bytes,
)
from lorafit.memory.estimate import Estimate, Peak, verdict_of, verdict_reason
from lorafit.memory.layer_formulas import Run
from lorafit.memory.lean_formulas import bytes_of_layer
from lorafit.model.chunks import chunk_rows
from lorafit.units import MIB


class Fragmentation(NamedTuple):
    """What the caching allocator reserves beyond what is allocated, as a sum of shares.

    Blocks that are free are too small, or in the pool of other sizes.
    """

    fixed_mib: float
    """MiB of every run."""
    layer_share: float
    """Share of the bytes that a layer saves."""
    loss_share: float
    """Share of the bytes that the loss takes."""


FITTED = Fragmentation(fixed_mib=83.8, layer_share=0.269, loss_share=0.171)
"""Fitted to traces by `bench/fit_closed_form.py`."""


@dataclass(frozen=True)
class QuickEstimate:
    """The answer: figures and parts as those of an exact `estimate.Estimate`."""

    peak: Peak
    """The phase is `loss`, `forward`, `backward`, `recompute` or `optimizer`."""
    breakdown: dict[str, int]
    """Bytes by part; they add up to `peak.process_bytes`."""


class _Moment(NamedTuple):
    """Bytes at a moment of the step, beside weights, adapters and the optimizer's state."""

    gradients: float
    logits: float
    activations: float


def estimate_fast(
    settings: Settings, model_config: Mapping[str, Any], device: DeviceInfo, num_shards: int = 1
) -> Estimate:
    """Return the closed form's answer in the shape of the exact one, labelled as what it is.

    `num_shards` processes hold the base weights together.

    Raises:
        DeviceError, ModelError: as `estimate_quickly`.
    """
    start = time.monotonic()
    quick = estimate_quickly(settings, model_config, device, num_shards)
    process = quick.peak.process_bytes
    verdict = verdict_of(process, device.usable_bytes, fits_by_releasing=False)
    return Estimate(
        model=settings.model,
        hardware=hardware_facts(device),
        settings=settings.model_dump(mode="json"),
        peak=quick.peak,
        breakdown=quick.breakdown,
        capacity_bytes=device.usable_bytes,
        verdict=verdict,
        reasons=(
            "a closed form, some per cent off; without --fast the step itself is traced",
            verdict_reason(verdict, process, device),
        ),
        elapsed_seconds=time.monotonic() - start,
    )


def estimate_quickly(
    settings: Settings, model_config: Mapping[str, Any], device: DeviceInfo, num_shards: int = 1
) -> QuickEstimate:
    """Return the peak memory of training, a few per cent off.

    Args:
        settings: every setting of the run.
        model_config: config.json of the base model.
        device: the device, detected or planned for.
        num_shards: processes that hold the base weights together.

    Raises:
        DeviceError: the device cannot compute in the number format that was asked for.
        ModelError: the configuration lacks a size.
    """
    run = describe_run(settings, model_config, device)
    trained = num_trained_parameters(run)
    phase, moment = _peak(run, 4 * trained)
    context, _ = process_context_bytes(device)
    weights = weight_bytes(run.arch, settings, run.itemsize)
    parts = {
        "weights_bytes": weights / num_shards,
        **({"gathered_bytes": gathered_bytes(run, weights)} if num_shards > 1 else {}),
        "adapter_bytes": 4 * trained,
        "gradient_bytes": moment.gradients,
        "optimizer_bytes": optimizer_bytes(settings, trained),
        "activation_bytes": moment.activations,
        "logits_bytes": moment.logits,
        "workspace_bytes": 2 * run.gpu.cublas_workspace_bytes if run.gpu is not None else 0,
    }
    breakdown = {name: int(size) for name, size in parts.items()}
    allocated = sum(breakdown.values())
    changing = sum(breakdown[f"{name}_bytes"] for name in ("activation", "logits", "gradient"))
    breakdown["fragmentation_bytes"] = _fragmentation_bytes(run) or kept_bytes(
        settings, device, changing
    )
    breakdown["context_bytes"] = context
    reserved = allocated + breakdown["fragmentation_bytes"]
    return QuickEstimate(Peak(allocated, reserved, reserved + context, phase), breakdown)


def describe_run(settings: Settings, model_config: Mapping[str, Any], device: DeviceInfo) -> Run:
    """Return the facts of a run that the formulas read."""
    dtype = compute_dtype(settings, model_config, device).value
    arch = read_architecture(model_config)
    itemsize = 4 if dtype == "float32" else 2
    return Run(arch, settings, gpu_traits(device), device.kind, itemsize, dtype == "bfloat16")


# -- What is there in every phase


def weight_bytes(arch: Architecture, settings: Settings, itemsize: int) -> float:
    """Return the bytes of the frozen weights as they lie on the device.

    NF4 takes half a byte an entry and a scale for each 64: in fp32, or with double quantization
    one byte and an fp32 scale for each 256 of them (QLoRA, arXiv 2305.14314, section 3). int8
    takes a byte and an fp32 scale a row.
    """
    rest = arch.other_parameters * itemsize
    if settings.quantization == "nf4":
        scales = (1 + 4 / 256) / 64 if settings.double_quant else 4 / 64
        return rest + arch.linear_weights * (0.5 + scales)
    if settings.quantization == "int8":
        rows = arch.num_layers * sum(linear.num_outputs for linear in arch.linears)
        return rest + arch.linear_weights + 4 * rows
    return rest + arch.linear_weights * itemsize


def gathered_bytes(run: Run, weights: float) -> float:
    """Return the bytes of the weights that a process has whole, of those that several share.

    They are the ends of the model, the layer that computes, and the buffer that the next layer is
    gathered into (`trace_sharding` has the very events).
    """
    ends = run.arch.other_parameters * run.itemsize
    return ends + 2 * (weights - ends) / run.arch.num_layers


def num_trained_parameters(run: Run) -> int:
    """Return the parameters of the adapters, and of the ends of the model where they are trained.

    An adapter of rank r on a product of M inputs and N outputs has r x (M + N).
    """
    adapted = [linear for linear in run.arch.linears if run.adapts(linear)]
    widths = sum(linear.num_inputs + linear.num_outputs for linear in adapted)
    whole = {"lm_head", "embed_tokens"} & set(run.settings.modules_to_save)
    ends = len(whole) * run.arch.embedding_parameters
    if _adapts_output(run):
        ends += run.settings.lora_r * (run.arch.hidden_size + run.arch.vocab_size)
    return run.arch.num_layers * run.settings.lora_r * widths + ends


def _adapts_output(run: Run) -> bool:
    return "lm_head" in (run.settings.target_modules or ())


def optimizer_bytes(settings: Settings, num_trained: int) -> int:
    """Return the bytes of Adam's two moments; paged ones lie in managed memory."""
    a_parameter = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2}
    return num_trained * a_parameter.get(settings.optim, 0)


# -- What comes and goes


def _peak(run: Run, gradient_bytes: int) -> tuple[str, _Moment]:
    """Return the phase in which most is allocated, and what is there beside the static parts."""
    arch, layer = run.arch, bytes_of_layer(run)
    checkpointed = num_checkpointed(run.settings, arch.num_layers)
    plain = arch.num_layers - checkpointed
    hidden = run.itemsize * arch.hidden_size
    rows = run.settings.per_device_train_batch_size
    # Ids, labels, positions and masks are 8-byte integers; cosines and sines are those of a row.
    inputs = 5 * 8 + 2 * run.itemsize * arch.head_dim / rows
    final_norm = hidden if arch.has_layer_norm else 4 * arch.hidden_size
    kept = inputs + checkpointed * layer.stored + plain * layer.saved + final_norm
    backward = max(layer.backward, layer.unpacking + _unpacked_bytes(run) / run.tokens)
    # Gradients of a first micro-batch wait for the second; otherwise they come with backward.
    accumulates = run.settings.gradient_accumulation_steps > 1
    early = gradient_bytes if accumulates else 0

    moments = {"loss": _Moment(early, loss_bytes(run), run.tokens * kept)}
    if plain:
        for phase, alive in (("forward", layer.forward), ("backward", backward)):
            moments[phase] = _Moment(early, 0, run.tokens * (kept - layer.saved + alive))
    if checkpointed:
        # The last checkpointed layer, computed again: those above are done, but for its gradient.
        alive = inputs + checkpointed * layer.stored + max(layer.forward, backward) + hidden
        grown = gradient_bytes if accumulates else gradient_bytes * plain / arch.num_layers
        moments["recompute"] = _Moment(grown, 0, run.tokens * alive)
    # AdamW over groups of tensors takes a temporary of the size of the parameters.
    moments["optimizer"] = _Moment(gradient_bytes, 0, gradient_bytes)
    phase = max(moments, key=lambda name: sum(moments[name]))
    return phase, moments[phase]


def num_checkpointed(settings: Settings, num_layers: int) -> int:
    """Return how many layers, from the first, are computed again in backward."""
    if not settings.gradient_checkpointing:
        return 0
    return min(settings.checkpointed_layers or num_layers, num_layers)


def loss_bytes(run: Run) -> float:
    """Return what the loss holds at its peak beside all that is saved.

    transformers' own holds, a logit, the log-softmax, its gradient's input and its gradient, all
    in fp32. The chunked loss holds a chunk of logits in fp32, and in the compute dtype before and
    after; and, a token, the chosen hidden states, their gradient (in fp32 where they are float16),
    and a product of it. An adapter of the output layer has its gradients from here on.
    """
    vocab, e = run.arch.vocab_size, run.itemsize
    if run.settings.kernels == "stock":
        return 12.0 * vocab * run.tokens
    rows = min(chunk_rows(vocab, run.device_kind), run.tokens)
    a_logit = 4.0 if e == 4 else 4.0 + e
    gradient = e if run.is_bfloat16 else 4
    hidden = run.arch.hidden_size
    of_adapter = 4.0 * run.settings.lora_r * (hidden + vocab) if _adapts_output(run) else 0.0
    return a_logit * rows * vocab + (2.0 * e + gradient) * hidden * run.tokens + of_adapter


def _unpacked_bytes(run: Run) -> float:
    """Return the largest matrix in the compute dtype: packed ones are unpacked for a product."""
    if run.settings.quantization == "none":
        return 0.0
    return float(run.itemsize * max(linear.num_weights for linear in run.arch.linears))


def fragmentation_terms(run: Run) -> tuple[float, float, float]:
    """Return what the three numbers of `Fragmentation` are multiplied by, in bytes."""
    return float(MIB), run.tokens * bytes_of_layer(run).saved, loss_bytes(run)


def _fragmentation_bytes(run: Run) -> int:
    """Return the bytes reserved beyond those allocated; only CUDA's allocator has such."""
    if run.gpu is None:
        return 0
    return int(sum(a * b for a, b in zip(FITTED, fragmentation_terms(run), strict=True)))
