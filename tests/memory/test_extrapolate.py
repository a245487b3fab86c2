"""The trace of a few layers, extended, against the trace of all of them: every birth and death."""

from array import array
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from test_trace import MODELS, T4, make_config, make_settings

from lorafit.memory.allocator import CachingAllocator
from lorafit.memory.events import Category, Phase, Trace
from lorafit.memory.extrapolate import NotRepeatingError, extrapolate
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.layer_choice import choose_layers, sorts_of_layers
from lorafit.memory.layer_tracer import LayeredTrace
from lorafit.memory.replay import replay
from lorafit.memory.timeline import build_timeline
from lorafit.memory.trace import TraceRequest, trace_training
from lorafit.memory.trace_layers import trace_by_layers, trace_quickly

pytestmark = pytest.mark.usefixtures("quiet_libraries")

A10G = GpuTraits((8, 6), 80)
LAYERS = {name: 13 if name == "gemma3_text" else 9 for name in MODELS}
CHECKPOINTING: dict[str, dict[str, Any]] = {
    "none": {"gradient_checkpointing": False},
    "some": {"gradient_checkpointing": True, "checkpointed_layers": 4},
    "all": {"gradient_checkpointing": True},
}


def request_for(
    model_type: str, gpu: GpuTraits | None = A10G, num_layers: int = 0, **options: Any
) -> TraceRequest:
    count = num_layers or LAYERS[model_type]
    shape: dict[str, Any] = {"num_hidden_layers": count}
    if options.get("quantization") == "nf4":
        # Widths that are multiples of the block of 64 numbers that share a scale.
        shape |= {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    if model_type == "gemma3_text":
        kinds = ("sliding_attention", "full_attention")
        shape["layer_types"] = [kinds[index % 6 == 5] for index in range(count)]
    plain = options.pop("plain_script", False)
    settings = make_settings(**{"attn_implementation": "auto", **options})
    dtype = torch.float32 if gpu is None else torch.bfloat16
    return TraceRequest(
        settings,
        make_config(model_type, **shape),
        dtype,
        gpu,
        plain_script=plain,
        on_cpu=gpu is None,
        capacity_bytes=3 << 30,
    )


def slow(options: dict[str, Any]) -> Any:
    return pytest.param(options, marks=pytest.mark.slow)


def in_order(trace: Trace) -> list[int]:
    """Return the events; between two births, which of several storages ends first is no matter.

    A graph that falls apart frees what it holds in the order of its nodes' addresses.
    """
    events: list[int] = []
    ended: list[int] = []
    for event in trace.events:
        if event < 0:
            ended.append(event)
        else:
            events += [*sorted(ended), event]
            ended = []
    return events + sorted(ended)


def assert_same_run(request: TraceRequest) -> None:
    full, quick = trace_training(request), trace_by_layers(request)
    assert quick.sizes == full.sizes
    assert quick.categories == full.categories
    assert quick.phases == full.phases
    assert quick.gathered == full.gathered
    assert in_order(quick) == in_order(full)
    by_full, by_quick = (replay(trace, CachingAllocator()) for trace in (full, quick))
    assert by_quick.stats == by_full.stats
    assert by_quick.bytes_at_peak == by_full.bytes_at_peak
    timelines = [build_timeline(trace, CachingAllocator()) for trace in (full, quick)]
    assert timelines[0].spans == timelines[1].spans
    assert timelines[0].peak_bytes == timelines[1].peak_bytes


QUICK = {
    ("phi", "none", "none"),
    ("llama", "all", "nf4"),
    ("mistral", "none", "nf4"),
    ("qwen2", "some", "none"),
    ("gemma3_text", "all", "none"),
}
QUICK_SHARDED = {("phi", "some", "none"), ("llama", "none", "nf4"), ("gemma3_text", "all", "none")}
EVERY = [
    pytest.param(*which, marks=() if which in QUICK else pytest.mark.slow)
    for which in product(MODELS, CHECKPOINTING, ("none", "nf4"))
]


@pytest.mark.parametrize(("model_type", "checkpointing", "quantization"), EVERY)
def test_few_layers_give_the_trace_of_all(
    model_type: str, checkpointing: str, quantization: str
) -> None:
    options = CHECKPOINTING[checkpointing]
    assert_same_run(request_for(model_type, quantization=quantization, **options))


@pytest.mark.parametrize(
    ("model_type", "checkpointing", "quantization"),
    [
        pytest.param(*which, marks=() if which in QUICK_SHARDED else pytest.mark.slow)
        for which in product(MODELS, CHECKPOINTING, ("none", "nf4"))
    ],
)
def test_few_layers_give_the_trace_of_all_whose_weights_are_shared(
    model_type: str, checkpointing: str, quantization: str
) -> None:
    options = CHECKPOINTING[checkpointing]
    request = request_for(model_type, quantization=quantization, **options)
    assert_same_run(replace(request, num_shards=3))


@pytest.mark.parametrize(
    "options",
    [
        slow({"optim": "adamw_8bit", "quantization": "int8", "lora_dropout": 0.0}),
        slow({"optim": "paged_adamw_8bit", "max_grad_norm": 0.0}),
        slow({"optim": "adamw_torch_fused", "gradient_accumulation_steps": 1}),
        {"kernels": "stock", "plain_script": True, "quantization": "nf4", "gpu": T4},
        slow({"kernels": "stock", "attn_implementation": "eager", "modules_to_save": ("lm_head",)}),
        slow({"gpu": None, "attn_implementation": "sdpa"}),
        {"target_modules": ("q_proj", "fc1", "lm_head"), "lora_dropout": 0.1},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_it_holds_for_every_optimizer_device_and_script(options: dict[str, Any]) -> None:
    assert_same_run(request_for("phi", **options))


def test_answer_says_how_many_layers_were_traced() -> None:
    quick = trace_quickly(request_for("llama", num_layers=10, gradient_accumulation_steps=1))
    assert quick.reason == "6 of 10 layers were traced, which the others repeat"
    shallow = trace_quickly(request_for("llama", num_layers=2, gradient_accumulation_steps=1))
    assert shallow.reason == "all 2 layers were traced"


def test_optimizer_whose_scratch_is_not_told_layer_by_layer_is_traced_in_full() -> None:
    request = request_for("llama", num_layers=9, optim="adafactor", gradient_accumulation_steps=1)
    quick = trace_quickly(request)
    assert quick.reason.startswith("all 9 layers were traced: ")
    assert quick.value.sizes == trace_training(request).sizes


def test_alike_layers_are_cut_to_the_ends_and_two_between() -> None:
    assert len(choose_layers(["layer"] * 80)) == 6
    assert choose_layers(["a", "b"]) == [0, 1]


@pytest.mark.parametrize("period", [2, 6])
def test_every_sort_of_layer_is_kept(period: int) -> None:
    kinds = ["full" if index % period == period - 1 else "sliding" for index in range(48)]
    kept = choose_layers(kinds)
    small = [kinds[index] for index in kept]
    assert set(sorts_of_layers(small)) == set(sorts_of_layers(kinds))
    assert kept == sorted(kept)
    assert len(kept) <= 2 * period + 6


def layered(sizes_by_layer: list[int]) -> LayeredTrace:
    """Return a trace in which every layer has one storage, which dies in backward."""
    trace = LayeredTrace()
    trace.begin(Phase.FORWARD)
    trace.is_inside = True
    for layer, size in enumerate(sizes_by_layer):
        trace.layer = layer
        trace.birth(size, Category.ACTIVATION)
    trace.begin(Phase.BACKWARD)
    for layer in reversed(range(len(sizes_by_layer))):
        trace.layer = layer
        trace.death(layer + 1)
    return trace


def test_layers_are_repeated_up_in_forward_and_down_in_backward() -> None:
    long = extrapolate(layered([7, 8, 9, 9, 6, 5]), ["x"] * 6, ["x"] * 9)
    assert long.sizes == array("q", [0, 7, 8, 9, 9, 9, 9, 9, 6, 5])
    assert list(long.events) == [*range(1, 10), *range(-9, 0)]
    assert long.phases == [(0, Phase.FORWARD), (9, Phase.BACKWARD)]


def test_layers_of_one_sort_that_differ_are_not_repeated() -> None:
    with pytest.raises(NotRepeatingError, match="layers 2 and 3 differ"):
        extrapolate(layered([7, 8, 9, 1, 6, 5]), ["x"] * 6, ["x"] * 9)


def test_storage_that_ends_in_a_layer_far_away_is_not_guessed_at() -> None:
    trace = layered([9] * 7)
    trace.layer = 6
    number = trace.birth(1, Category.ACTIVATION)
    trace.storage_layers[number] = 3
    trace.layer = 3
    odd = trace.birth(1, Category.ACTIVATION)
    trace.layer = 0
    trace.death(odd)
    with pytest.raises(NotRepeatingError):
        extrapolate(trace, ["x"] * 7, ["x"] * 9)
