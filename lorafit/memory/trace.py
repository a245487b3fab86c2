"""Tracing a run: the model that is trained and the step that trains it, on the `meta` device.

`build_on_meta`, `add_adapter`, `make_optimizer` and `training_step` are those of training: the
trace describes nothing of its own.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes

from lorafit.config.schema import Settings
from lorafit.data.micro_batches import token_budget
from lorafit.hardware.info import DeviceKind
from lorafit.memory.events import Category, Phase, Trace
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.trace_load import load_empty, quantize_structure
from lorafit.memory.trace_operators import CpuOperators, CudaOperators
from lorafit.memory.tracer import StorageTracer
from lorafit.model import build, step
from lorafit.model.attention import ATTENTION_NAME, BlockAttention, choose_block_attention
from lorafit.model.lean.products import tracing_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class TraceRequest:
    """What is traced: settings, the model's configuration, the number format, the device."""

    settings: Settings
    config: "PretrainedConfig"
    dtype: torch.dtype
    gpu: GpuTraits | None
    """The NVIDIA GPU; None on other devices."""
    plain_script: bool = False
    """Trace what scripts around stock transformers + PEFT do, instead of lorafit's training: the
    weights go to the device as `model.to(device)` takes them (quantized ones as from_pretrained
    does), `prepare_model_for_kbit_training` makes the rest of a quantized model fp32, and the
    outputs, logits included, stay until the step is over."""
    on_cpu: bool = False
    """Take the CPU's own attention operator; without, and with no GPU, attention is composed of
    products and a softmax, as it is on Metal when gradients are wanted."""
    capacity_bytes: int | None = None
    """Memory of the device, which limits what transformers asks for ahead of loading."""


_SHORT_ROW = 64
"""Tokens of the rows in a bin, where they are not known: their mean is seldom lower."""


class EndToEnd(NamedTuple):
    """Rows without padding: what computes their attention, and on what kind of device."""

    attention: BlockAttention
    device_kind: DeviceKind


def trace_training(request: TraceRequest) -> Trace:
    """Trace loading and two optimizer steps; the second shows the steady state.

    The second step has at most two micro-batches: the second runs beside the gradients of the
    first, and a third would run as the second does.
    """
    vocab_size = request.config.get_text_config().vocab_size
    return run_traced(request, StorageTracer("meta", request.gpu, vocab_size))


def run_traced(request: TraceRequest, tracer: StorageTracer) -> Trace:
    """Load and train on `meta` under a new tracer, as `trace_training`, and return its trace."""
    settings = _traceable(request.settings)
    if request.plain_script:
        settings = settings.model_copy(update={"kernels": "stock"})
    base = build.build_on_meta(settings, request.config, request.dtype)
    meta = torch.device("meta")
    with _device_paths(request), bitsandbytes_on_meta(tracer):
        model = load_adapted(base, replace(request, settings=settings), meta, tracer)
        with tracer:
            # The optimizer's state lives as long as the optimizer does.
            optimizer = trace_steps(
                model, tracer, settings, meta, request.plain_script, _rows_of(request, model)
            )
            traced = tracer.finish()
            del optimizer
    return traced


def trace_steps(
    model: torch.nn.Module,
    tracer: StorageTracer,
    settings: Settings,
    device: torch.device,
    plain_script: bool = False,
    end_to_end: EndToEnd | None = None,
) -> torch.optim.Optimizer:
    """Run two optimizer steps of full rows on `device` under an active tracer.

    The rows are padded ones, or `end_to_end`.

    Returns:
        The optimizer, which holds its state.
    """
    optimizer = step.make_optimizer(model, settings)
    with _phases(tracer, model, optimizer):
        _run_steps(model, optimizer, settings, device, plain_script, end_to_end, tracer)
    return optimizer


def train_full_rows(
    model: torch.nn.Module,
    settings: Settings,
    device: torch.device,
    plain_script: bool = False,
) -> torch.optim.Optimizer:
    """Run the two steps that `trace_steps` watches, for real and unwatched.

    Returns:
        The optimizer, which holds its state.
    """
    optimizer = step.make_optimizer(model, settings)
    end_to_end = None if plain_script else _rows_on(model, settings, device)
    _run_steps(model, optimizer, settings, device, plain_script, end_to_end)
    return optimizer


def _run_steps(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    device: torch.device,
    plain_script: bool,
    end_to_end: EndToEnd | None,
    tracer: StorageTracer | None = None,
) -> None:
    micro_batches = [
        _batch(model, settings, device, plain_script=plain_script, end_to_end=end_to_end)
        for _ in range(min(settings.gradient_accumulation_steps, 2))
    ]
    num_targets = settings.per_device_train_batch_size * (settings.max_length - 1)
    held = _hold_outputs(model) if plain_script else []
    # The first step makes the optimizer's state; what accumulates, accumulates in the second.
    for batches in (micro_batches[:1], micro_batches):
        if tracer is not None:
            tracer.begin(Phase.FORWARD, Category.ACTIVATION)
        step.training_step(model, optimizer, batches, num_targets * len(batches), settings)
        held.clear()


def _traceable(settings: Settings) -> Settings:
    """Return settings whose model can be built without a GPU.

    FlashAttention-2's package is not needed to know its memory: for full rows it saves and takes
    what PyTorch's own flash operator does.
    """
    if settings.attn_implementation == "flash_attention_2":
        return settings.model_copy(update={"attn_implementation": "sdpa"})
    return settings


def load_adapted(
    base: "PreTrainedModel",
    request: TraceRequest,
    device: torch.device,
    tracer: StorageTracer | None = None,
) -> torch.nn.Module:
    """Give a model on `meta` its storages on `device`, as loading does, and add the adapter."""
    settings = request.settings
    is_quantized = settings.quantization != "none"
    if is_quantized:
        quantize_structure(base, settings, request.dtype)
    warm_up = is_quantized or not request.plain_script
    with tracer or contextlib.nullcontext():
        load_empty(
            base,
            request.dtype,
            device,
            warm_up=warm_up,
            capacity_bytes=request.capacity_bytes,
            tracer=tracer,
        )
        if request.plain_script and is_quantized:
            from peft import prepare_model_for_kbit_training

            prepare_model_for_kbit_training(
                base,
                use_gradient_checkpointing=settings.gradient_checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False},
            )
        if tracer is not None:
            tracer.mark(base.parameters(), Category.WEIGHTS)
            tracer.category = Category.ADAPTER
        with tracer.adding_adapter() if tracer is not None else contextlib.nullcontext():
            model: torch.nn.Module = build.add_adapter(base, settings)[0]
    return model


def _hold_outputs(model: torch.nn.Module) -> list[Any]:
    """Keep the model's last outputs alive, as `outputs = model(**batch)` does, in this list."""
    held: list[Any] = []

    def hold(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        held[:] = [outputs]

    model.register_forward_hook(hold)
    return held


def _batch(
    model: Any,
    settings: Settings,
    device: torch.device,
    *,
    plain_script: bool,
    end_to_end: EndToEnd | None,
) -> dict[str, Any]:
    """Return a micro-batch of full rows, with what `data.collate.Collator` puts into one.

    Plain scripts pass the inputs as labels too, and no mask.
    """
    if end_to_end is not None:
        return _batch_end_to_end(settings, device, end_to_end)
    shape = (settings.per_device_train_batch_size, settings.max_length)
    inputs = torch.zeros(shape, dtype=torch.int64, device=device)
    if plain_script:
        return {"input_ids": inputs, "labels": inputs}
    batch = {
        "input_ids": inputs,
        "attention_mask": torch.ones_like(inputs),
        "labels": torch.zeros_like(inputs),
    }
    if build.choose_loss(model.get_base_model(), settings).value:
        # Every position but the last of a row predicts a token.
        positions = torch.arange(shape[0] * (shape[1] - 1), device=device)
        batch |= {"target_positions": positions, "targets": torch.zeros_like(positions)}
    return batch


def _batch_end_to_end(
    settings: Settings, device: torch.device, end_to_end: EndToEnd
) -> dict[str, Any]:
    """Return the largest micro-batch without padding, as `data.collate.EndToEndCollator` makes it.

    Memory depends on its tokens, not on how they are spread over rows, but for one thing: the
    backward of the varlen kernel rounds every row up. It gets as many rows as a step can have.
    """
    rows, length = settings.per_device_train_batch_size, settings.max_length
    num_tokens = token_budget(rows, length, end_to_end.device_kind).value
    by_document = end_to_end.attention == "documents"
    if by_document:
        lengths = [length] * (num_tokens // length)
        lengths += [num_tokens % length] if num_tokens % length else []
    else:
        num_rows = rows * settings.gradient_accumulation_steps
        if settings.packing:
            num_rows = max(num_rows, num_tokens // _SHORT_ROW)
        num_rows = min(num_rows, num_tokens // 2)
        lengths = [num_tokens - 2 * (num_rows - 1), *[2] * (num_rows - 1)]
    # Values matter to real kernels; on `meta` they are ignored.
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
    inputs = torch.zeros(1, num_tokens, dtype=torch.int64, device=device)
    positions = torch.arange(num_tokens - min(rows, len(lengths)), device=device)
    batch: dict[str, Any] = {
        "input_ids": inputs,
        "position_ids": torch.zeros_like(inputs),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts.clone(),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "target_positions": positions,
        "targets": torch.zeros_like(positions),
    }
    return batch | ({"document_lengths": tuple(lengths)} if by_document else {})


def _rows_of(request: TraceRequest, model: Any) -> EndToEnd | None:
    """Return how rows go without padding on the device that is asked about, if they do."""
    if request.plain_script:
        return None
    kind: DeviceKind = "cuda" if request.gpu else "cpu" if request.on_cpu else "mps"
    capability = request.gpu.compute_capability if request.gpu else None
    return _choose_rows(model, request.settings, kind, capability, request.dtype)


def _rows_on(model: Any, settings: Settings, device: torch.device) -> EndToEnd | None:
    """Return how rows go without padding on a device that is there, if they do."""
    kind: DeviceKind = "mps" if device.type == "mps" else "cuda" if device.type == "cuda" else "cpu"
    capability = torch.cuda.get_device_capability(device) if kind == "cuda" else None
    return _choose_rows(model, settings, kind, capability, model.get_base_model().dtype)


def _choose_rows(
    model: Any,
    settings: Settings,
    kind: DeviceKind,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
) -> EndToEnd | None:
    base = model.get_base_model()
    if base.config._attn_implementation != ATTENTION_NAME:
        return None
    attention = choose_block_attention(
        settings,
        base.config,
        loss=build.choose_loss(base, settings),
        device_kind=kind,
        compute_capability=capability,
        dtype=dtype,
    ).value
    return None if attention is None else EndToEnd(attention, kind)


@contextlib.contextmanager
def _device_paths(request: TraceRequest) -> Iterator[None]:
    """Send `meta` tensors where tensors on the device go."""
    if request.gpu is None:
        operators = CpuOperators() if request.on_cpu else contextlib.nullcontext()
        with operators, tracing_for("cpu" if request.on_cpu else "mps"):
            yield
        return
    efficient = request.settings.attn_implementation == "sdpa-efficient"
    with (
        _grouped_kernels(),
        CudaOperators(request.gpu, efficient_attention=efficient),
        tracing_for("cuda"),
    ):
        yield


@contextlib.contextmanager
def bitsandbytes_on_meta(tracer: StorageTracer) -> Iterator[None]:
    """Let bitsandbytes work on `meta`, and leave nothing of it behind.

    Paged optimizers get their managed memory, which no allocator of torch has, and the tables of
    quantization that it keeps for the process are put back: on `meta` they have no numbers.
    """
    from bitsandbytes import functional

    def paged(*shape: int, dtype: torch.dtype = torch.float32, **_: Any) -> torch.Tensor:
        with _disable_current_modes():
            buffer: Any = torch.empty(shape, dtype=dtype, device="meta")
        tracer.exclude(buffer)
        buffer.is_paged, buffer.page_deviceid = True, 0
        result: torch.Tensor = buffer
        return result

    with (
        mock.patch.dict(functional.name2qmap, clear=True),
        mock.patch.object(functional, "get_paged", paged),
        mock.patch.object(functional, "prefetch_tensor", return_value=None),
        mock.patch.object(functional, "fill", return_value=None),
    ):
        yield


@contextlib.contextmanager
def _grouped_kernels() -> Iterator[None]:
    """Let `meta` tensors take the grouped kernels that CUDA tensors take in optimizers."""
    from torch.utils import _foreach_utils

    optimizer_module = sys.modules[torch.optim.Optimizer.__module__]
    foreach = [*_foreach_utils._get_foreach_kernels_supported_devices(), "meta"]
    fused = [*_foreach_utils._get_fused_kernels_supported_devices(), "meta"]
    with contextlib.ExitStack() as stack:
        for module in (_foreach_utils, optimizer_module):
            for name, devices in (
                ("_get_foreach_kernels_supported_devices", foreach),
                ("_get_fused_kernels_supported_devices", fused),
            ):
                if hasattr(module, name):
                    stack.enter_context(
                        mock.patch.object(module, name, lambda devices=devices: devices)
                    )
        yield


@contextlib.contextmanager
def _phases(
    tracer: StorageTracer, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Tell the tracer which phase of the step runs, by watching what the step calls."""
    trained = step.trainable_parameters(model)
    clip = step.clip_gradients
    update = optimizer.step
    zero_grad = optimizer.zero_grad

    backward = torch.Tensor.backward

    def traced_backward(loss: torch.Tensor) -> None:
        tracer.begin(Phase.BACKWARD, Category.ACTIVATION)
        backward(loss)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        tracer.mark((parameter.grad for parameter in trained), Category.GRADIENT)
        tracer.begin(Phase.FORWARD, Category.ACTIVATION)

    def traced_clip(*args: Any, **kwargs: Any) -> Any:
        tracer.begin(Phase.CLIP, Category.OPTIMIZER)
        return clip(*args, **kwargs)

    def traced_update(*args: Any, **kwargs: Any) -> Any:
        tracer.begin(Phase.OPTIMIZER, Category.OPTIMIZER)
        return update(*args, **kwargs)

    def traced_zero_grad(*args: Any, **kwargs: Any) -> Any:
        tracer.begin(Phase.ZERO_GRAD, Category.OPTIMIZER)
        return zero_grad(*args, **kwargs)

    with (
        mock.patch.object(torch.Tensor, "backward", traced_backward),
        mock.patch.object(step, "clip_gradients", traced_clip),
        mock.patch.object(optimizer, "step", traced_update),
        mock.patch.object(optimizer, "zero_grad", traced_zero_grad),
    ):
        yield
