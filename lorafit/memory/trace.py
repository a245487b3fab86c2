"""Tracing a run: the model that is trained and the step that trains it, on the `meta` device.

`build_on_meta`, `add_adapter`, `make_optimizer` and `training_step` are those of training: the
trace describes nothing of its own.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from lorafit.config.schema import Settings
from lorafit.hardware.info import DeviceKind
from lorafit.memory.events import Category, Phase, Trace
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.trace_batches import EndToEnd, choose_rows, full_batch
from lorafit.memory.trace_libraries import (
    bitsandbytes_on_meta,
    fused_kernels,
    grouped_kernels,
)
from lorafit.memory.trace_load import load_empty, quantize_structure
from lorafit.memory.trace_operators import CpuOperators, CudaOperators
from lorafit.memory.trace_sharding import Sharding
from lorafit.memory.tracer import StorageTracer
from lorafit.model import build, step
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
    num_shards: int = 1
    """Processes that hold the base weights together, each its share; 1: this one holds all."""


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
        load = load_sharded if request.num_shards > 1 else load_adapted
        model = load(base, replace(request, settings=settings), meta, tracer)
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
        full_batch(model, settings, device, plain_script=plain_script, end_to_end=end_to_end)
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


def load_sharded(
    base: "PreTrainedModel", request: TraceRequest, device: torch.device, tracer: StorageTracer
) -> torch.nn.Module:
    """Do as `load_adapted` in one of several processes, each with its share of the base weights.

    The host's memory has the model before the device does; there it is quantized, too.
    """
    settings = request.settings
    if settings.quantization != "none":
        quantize_structure(base, settings, request.dtype)
    load_empty(base, request.dtype, device, warm_up=False)
    with tracer:
        tracer.category = Category.ADAPTER
        with tracer.adding_adapter():
            model: torch.nn.Module = build.add_adapter(base, settings)[0]
        sharding = Sharding(tracer, request.num_shards)
        sharding.install(base, build.checkpointable_layers(base), on_host=request.on_cpu)
    return model


def _hold_outputs(model: torch.nn.Module) -> list[Any]:
    """Keep the model's last outputs alive, as `outputs = model(**batch)` does, in this list."""
    held: list[Any] = []

    def hold(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
        held[:] = [outputs]

    model.register_forward_hook(hold)
    return held


def _rows_of(request: TraceRequest, model: Any) -> EndToEnd | None:
    """Return how rows go without padding on the device that is asked about, if they do."""
    if request.plain_script:
        return None
    kind: DeviceKind = "cuda" if request.gpu else "cpu" if request.on_cpu else "mps"
    capability = request.gpu.compute_capability if request.gpu else None
    return choose_rows(model, request.settings, kind, capability, request.dtype)


def _rows_on(model: Any, settings: Settings, device: torch.device) -> EndToEnd | None:
    """Return how rows go without padding on a device that is there, if they do."""
    kind: DeviceKind = "mps" if device.type == "mps" else "cuda" if device.type == "cuda" else "cpu"
    capability = torch.cuda.get_device_capability(device) if kind == "cuda" else None
    return choose_rows(model, settings, kind, capability, model.get_base_model().dtype)


@contextlib.contextmanager
def _device_paths(request: TraceRequest) -> Iterator[None]:
    """Send `meta` tensors where tensors on the device go."""
    if request.gpu is None:
        operators = CpuOperators() if request.on_cpu else contextlib.nullcontext()
        with operators, fused_kernels(), tracing_for("cpu" if request.on_cpu else "mps"):
            yield
        return
    efficient = request.settings.attn_implementation == "sdpa-efficient"
    with (
        grouped_kernels(),
        CudaOperators(request.gpu, efficient_attention=efficient),
        tracing_for("cuda"),
    ):
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
