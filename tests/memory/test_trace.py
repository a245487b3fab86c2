"""The trace on `meta` against the real thing: the same step on the CPU, storage by storage."""

import contextlib
from typing import Any

import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.memory.events import Category, Phase
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.trace import TraceRequest, trace_steps, trace_training
from lorafit.memory.trace_libraries import bitsandbytes_on_meta, fused_kernels
from lorafit.memory.trace_load import quantize_structure
from lorafit.memory.trace_operators import CpuOperators
from lorafit.memory.tracer import StorageTracer

pytestmark = pytest.mark.usefixtures("quiet_libraries")

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "phi": {"num_key_value_heads": 4, "resid_pdrop": 0.1},
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "gemma3_text": {
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
T4 = GpuTraits((7, 5), 40)


def make_config(model_type: str, **options: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, **{**SHAPE, **MODELS[model_type], **options})


def make_settings(**options: Any) -> Settings:
    values: dict[str, Any] = {
        "max_length": 16,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "attn_implementation": "eager",
        "torch_compile": False,
    }
    return Settings(**{**values, **options})


def trained_events(device: str, config: Any, settings: Settings) -> list[tuple[int, int]]:
    """Return (storage, bytes) at birth and (storage, -1) at death, numbered by birth.

    Storages of up to 64 bytes are left out: counters that an optimizer keeps on the host.
    """
    from transformers import AutoModelForCausalLM

    from lorafit.model.build import add_adapter

    with torch.device(device):
        base = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=settings.attn_implementation
        )
    tracer = StorageTracer(device)
    with contextlib.ExitStack() as stack:
        if device == "meta":
            stack.enter_context(bitsandbytes_on_meta(tracer))
            stack.enter_context(fused_kernels())
            stack.enter_context(CpuOperators())
        if settings.quantization == "nf4":
            quantize_weights(base, settings, torch.device(device))
        stack.enter_context(tracer)
        model, _ = add_adapter(base, settings)
        start = len(tracer.trace.events)
        trace_steps(model, tracer, settings, torch.device(device))
    numbers: dict[int, int] = {}
    events = []
    for event in tracer.trace.events[start:]:
        size = tracer.trace.sizes[abs(event)]
        if size > 64 and event > 0:
            numbers[event] = len(numbers)
            events.append((numbers[event], size))
        elif size > 64:
            events.append((numbers[-event], -1))
    return events


def quantize_weights(base: Any, settings: Settings, device: torch.device) -> None:
    weights = {name: parameter.data for name, parameter in base.named_parameters()}
    quantize_structure(base, settings, torch.float32)
    for name, module in base.named_modules():
        weight = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            quantized = type(weight)(weights[f"{name}.weight"], **weight.__dict__)
            module.weight = quantized._quantize(device)
            module.weight.module = module
            module.quant_state = module.weight.quant_state
            if module.bias is not None:
                bias = weights[f"{name}.bias"]
                module.bias = torch.nn.Parameter(bias, requires_grad=False)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("double_quant", [False, True])
def test_meta_trace_of_a_quantized_model_equals_a_real_step(
    double_quant: bool, checkpointing: bool
) -> None:
    settings = make_settings(
        quantization="nf4", double_quant=double_quant, gradient_checkpointing=checkpointing
    )
    # Widths that are multiples of the block of 64 numbers that share a scale.
    config = make_config("llama", hidden_size=64, intermediate_size=128)
    assert trained_events("meta", config, settings) == trained_events("cpu", config, settings)


@pytest.mark.parametrize("model_type", [name for name in MODELS if name != "llama"])
def test_meta_trace_of_every_quantized_model_equals_a_real_step(model_type: str) -> None:
    settings = make_settings(
        quantization="nf4", gradient_checkpointing=model_type in ("phi", "qwen2")
    )
    config = make_config(model_type, hidden_size=64, intermediate_size=128, head_dim=16)
    assert trained_events("meta", config, settings) == trained_events("cpu", config, settings)


def test_meta_trace_of_dora_on_a_quantized_model_equals_a_real_step() -> None:
    settings = make_settings(quantization="nf4", use_dora=True)
    config = make_config("llama", hidden_size=64, intermediate_size=128)
    assert trained_events("meta", config, settings) == trained_events("cpu", config, settings)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kernels", ["lorafit", "stock"])
@pytest.mark.parametrize("model_type", MODELS)
def test_meta_trace_equals_a_real_step_storage_by_storage(
    model_type: str, kernels: str, checkpointing: bool
) -> None:
    settings = make_settings(gradient_checkpointing=checkpointing, kernels=kernels)
    predicted = trained_events("meta", make_config(model_type), settings)
    real = trained_events("cpu", make_config(model_type), settings)
    assert predicted == real
    assert len(real) > 500


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head")])
@pytest.mark.parametrize("model_type", ["phi", "llama"])
def test_meta_trace_of_an_adapted_output_layer_equals_a_real_step(
    model_type: str, targets: tuple[str, ...], dropout: float
) -> None:
    config = make_config(model_type)
    settings = make_settings(target_modules=targets, lora_dropout=dropout)
    real = trained_events("cpu", config, settings)
    assert trained_events("meta", config, settings) == real
    # The gradient of B, in all chunks together.
    assert settings.lora_r * config.vocab_size * 4 in [size for _, size in real]


@pytest.mark.parametrize("model_type", ["phi", "llama"])
def test_meta_trace_takes_the_attention_operator_of_the_cpu(model_type: str) -> None:
    settings = make_settings(attn_implementation="sdpa", gradient_accumulation_steps=1)
    predicted = trained_events("meta", make_config(model_type), settings)
    assert predicted == trained_events("cpu", make_config(model_type), settings)


def trace(model_type: str = "llama", gpu: GpuTraits | None = T4, **options: Any) -> Any:
    settings = make_settings(**options)
    return trace_training(TraceRequest(settings, make_config(model_type), torch.float16, gpu))


def bytes_of(traced: Any, category: Category) -> int:
    """Return the bytes of live storages of a category at the end of the trace."""
    return sum(traced.sizes[n] for n in traced.live() if traced.categories[n] == category)


def test_weights_adapters_and_optimizer_have_the_bytes_of_their_parameters() -> None:
    traced = trace(lora_r=4)
    hidden, inner, layers, vocabulary = 32, 64, 2, 96
    key_width = hidden // 2
    linear = 2 * hidden * hidden + 2 * hidden * key_width + 3 * hidden * inner
    norms = layers * 2 * hidden + hidden
    rotary = 4 * 4 * 2  # head size 8: 4 frequencies in fp32, kept twice
    weights = 2 * (layers * linear + norms + 2 * vocabulary * hidden) + rotary
    assert bytes_of(traced, Category.WEIGHTS) == weights
    pairs = 2 * (hidden + hidden) + 2 * (hidden + key_width) + 3 * (hidden + inner)
    adapter = 4 * 4 * layers * pairs  # rank 4 in fp32
    assert bytes_of(traced, Category.ADAPTER) == adapter
    assert bytes_of(traced, Category.OPTIMIZER) == 2 * adapter
    assert bytes_of(traced, Category.GRADIENT) == 0


def test_forward_and_backward_threads_each_take_one_cublas_workspace() -> None:
    traced = trace()
    workspaces = [
        n
        for n in traced.live()
        if traced.categories[n] == Category.WORKSPACE and traced.sizes[n] == 8_519_680
    ]
    assert len(workspaces) == 2


def test_softmax_backward_takes_a_buffer_of_its_own_in_single_precision() -> None:
    traced = trace(gradient_checkpointing=False)
    scores = 2 * 4 * 16 * 16 * 4  # B x heads x T x T in fp32
    buffers = [
        n
        for n in range(1, traced.num_storages + 1)
        if traced.categories[n] == Category.WORKSPACE and traced.sizes[n] == scores
    ]
    assert len(buffers) == 2 * (1 + 2)  # layers x micro-batches of the first and second step


def test_checkpointing_keeps_fewer_activations() -> None:
    def forward_activations(checkpointing: bool) -> int:
        traced = trace(gradient_checkpointing=checkpointing)
        backward = next(start for start, phase in traced.phases if phase is Phase.BACKWARD)
        alive: set[int] = set()
        for event in traced.events[:backward]:
            if event > 0:
                alive.add(event)
            else:
                alive.discard(-event)
        kept = [n for n in alive if traced.categories[n] == Category.ACTIVATION]
        return sum(traced.sizes[n] for n in kept)

    assert forward_activations(True) < forward_activations(False) / 3


def activation_sizes(traced: Any) -> set[int]:
    numbers = range(1, traced.num_storages + 1)
    return {traced.sizes[n] for n in numbers if traced.categories[n] == Category.ACTIVATION}


def test_efficient_attention_keeps_no_scores() -> None:
    scores = 2 * 4 * 24 * 24 * 2
    eager = trace(max_length=24)
    efficient = trace(max_length=24, attn_implementation="sdpa-efficient")
    assert scores in activation_sizes(eager)
    assert scores not in activation_sizes(efficient)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_weights_are_smaller_and_need_their_full_size_only_while_loading(
    quantization: str,
) -> None:
    plain = trace(gradient_accumulation_steps=1)
    quantized = trace(quantization=quantization, gradient_accumulation_steps=1)
    saved = bytes_of(plain, Category.WEIGHTS) - bytes_of(quantized, Category.WEIGHTS)
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)  # parameters
    assert saved > linear * (0.5 if quantization == "nf4" else 0.7)
    assert 2 * 32 * 64 in quantized.sizes


def test_trace_leaves_no_table_of_quantization_without_numbers_behind() -> None:
    from bitsandbytes import functional

    before = dict(functional.name2qmap)
    trace(quantization="nf4", double_quant=True, gradient_accumulation_steps=1)
    assert functional.name2qmap == before
    assert not any(table.is_meta for table in functional.name2qmap.values())


@pytest.mark.parametrize(
    "optim", ["adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "sgd", "adafactor"]
)
def test_every_optimizer_can_be_traced(optim: str) -> None:
    traced = trace(lora_r=4, optim=optim, gradient_accumulation_steps=1)
    adam = 2 * bytes_of(traced, Category.ADAPTER)
    small_tables = 4096  # quantization maps, step counters
    assert bytes_of(traced, Category.OPTIMIZER) <= adam + small_tables


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd", "adafactor"])
def test_meta_trace_of_an_optimizer_on_the_cpu_equals_a_real_step(optim: str) -> None:
    settings = make_settings(optim=optim)
    config = make_config("llama")
    assert trained_events("meta", config, settings) == trained_events("cpu", config, settings)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
def test_optimizers_without_bitsandbytes_can_be_traced_off_nvidia(optim: str, on_cpu: bool) -> None:
    request = TraceRequest(
        make_settings(optim=optim), make_config("llama"), torch.float32, None, on_cpu=on_cpu
    )
    assert bytes_of(trace_training(request), Category.ADAPTER)


def test_loss_of_lorafit_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafit.model.loss.chunk_rows", lambda *_: 8)
    all_logits = 2 * 15 * 96 * 4
    chunked, stock = trace(), trace(kernels="stock")
    logits = [n for n in range(1, chunked.num_storages + 1) if is_logits(chunked, n)]
    assert logits
    assert max(chunked.sizes[n] for n in logits) == 8 * 96 * 4
    largest = max(stock.sizes[n] for n in range(1, stock.num_storages + 1) if is_logits(stock, n))
    assert largest >= all_logits


def is_logits(traced: Any, number: int) -> bool:
    return bool(traced.categories[number] == Category.LOGITS)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_every_gpu_traces_the_attention_it_would_run(quantization: str) -> None:
    for gpu in (T4, GpuTraits((8, 0), 108), GpuTraits((9, 0), 132)):
        for model_type in MODELS:
            traced = trace(
                model_type,
                gpu,
                attn_implementation="sdpa",
                quantization=quantization,
                gradient_accumulation_steps=1,
            )
            assert bytes_of(traced, Category.GRADIENT) == 0
            assert Phase.BACKWARD in {phase for _, phase in traced.phases}


def test_plain_script_keeps_the_logits_through_backward() -> None:
    settings = make_settings(gradient_accumulation_steps=1)
    config = make_config("llama")
    logits = 2 * 16 * 96 * 2

    def alive_at_backward(plain: bool) -> bool:
        request = TraceRequest(settings, config, torch.float16, T4, plain_script=plain)
        traced = trace_training(request)
        start = next(start for start, phase in traced.phases if phase is Phase.BACKWARD)
        alive = set()
        for event in traced.events[:start]:
            if event > 0:
                alive.add(event)
            else:
                alive.discard(-event)
        kept = [n for n in alive if traced.categories[n] == Category.LOGITS]
        return any(traced.sizes[n] == logits for n in kept)

    assert alive_at_backward(True)
    assert not alive_at_backward(False)
