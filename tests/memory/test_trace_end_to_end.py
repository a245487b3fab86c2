"""Traces of micro-batches without padding are those of real steps, and near padded ones."""

import contextlib
import math
from itertools import accumulate

import pytest
import torch
from test_trace import make_config, make_settings

from lorafit.memory.cuda_attention import ATTENTION
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.scratch import Call
from lorafit.memory.trace import TraceRequest, trace_steps, trace_training
from lorafit.memory.trace_batches import EndToEnd
from lorafit.memory.trace_operators import CpuOperators
from lorafit.memory.tracer import StorageTracer
from lorafit.model.build import add_adapter, attention_name

pytestmark = pytest.mark.usefixtures("quiet_libraries")
A100 = GpuTraits((8, 0), 108)
FUSED = {"attn_implementation": "sdpa"}


def traced_sizes(device, config, settings):
    """Return the bytes of every storage of two steps, at birth and (negative) at death."""
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        base = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention_name(settings)
        )
    tracer = StorageTracer(device)
    with contextlib.ExitStack() as stack:
        if device == "meta":
            stack.enter_context(CpuOperators())
        stack.enter_context(tracer)
        model, _ = add_adapter(base, settings)
        start = len(tracer.trace.events)
        trace_steps(
            model, tracer, settings, torch.device(device), end_to_end=EndToEnd("documents", "cpu")
        )
    sized = [int(math.copysign(tracer.trace.sizes[abs(e)], e)) for e in tracer.trace.events[start:]]
    return [size for size in sized if abs(size) > 64]


@pytest.mark.parametrize("model_type", ["phi", "llama"])
def test_meta_trace_of_rows_end_to_end_equals_a_real_step(model_type):
    config, settings = make_config(model_type), make_settings(**FUSED)
    assert traced_sizes("meta", config, settings) == traced_sizes("cpu", config, settings)


@pytest.mark.parametrize("model_type", ["mistral", "gemma3_text"])
def test_windows_make_the_peak_that_they_make_in_a_real_step(model_type):
    config, settings = make_config(model_type), make_settings(**{**FUSED, "max_length": 24})
    peaks = [max(accumulate(traced_sizes(device, config, settings))) for device in ("meta", "cpu")]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.005)


@pytest.mark.parametrize("gpu", [None, A100])
def test_full_rows_without_padding_take_about_what_padded_ones_do(gpu):
    sizes = []
    for value in ("true", "false"):
        settings = make_settings(**{**FUSED, "padding_free": value, "max_length": 64})
        request = TraceRequest(
            settings, make_config("llama"), torch.bfloat16, gpu, on_cpu=gpu is None
        )
        trace = trace_training(request)
        sizes.append(peak(trace))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def peak(trace):
    used = highest = 0
    for event in trace.events:
        used += trace.sizes[abs(event)] if event > 0 else -trace.sizes[-event]
        highest = max(highest, used)
    return highest


def test_the_varlen_kernel_rounds_every_row_up_in_backward():
    meta = {"device": "meta", "dtype": torch.bfloat16}
    query, key = torch.empty(300, 8, 80, **meta), torch.empty(300, 2, 80, **meta)
    starts = torch.empty(4, device="meta", dtype=torch.int32)  # three rows
    call = Call((query, query, key, key, query, None, starts), {}, A100)
    row = ATTENTION["torch_attn::_varlen_attn_backward"]
    rounded = 300 + 3 * 128
    assert row.after(call) == [
        8 * rounded * 4,
        rounded * 8 * 96 * 4,
        300 * 8 * 80 * 2,
        300 * 8 * 80 * 2,
    ]
    assert row.before(call) == []
