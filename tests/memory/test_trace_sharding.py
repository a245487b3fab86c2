"""Traced shards on `meta` against two real processes that run `fully_shard`, storage by storage."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_process import NUM_PROCESSES, ResizeTracer
from test_trace import make_config, make_settings
from tiny import child_environment

from lorafit.memory.events import Trace
from lorafit.memory.trace import trace_steps
from lorafit.memory.trace_operators import CpuOperators
from lorafit.memory.trace_sharding import Sharding, shard_bytes

pytestmark = pytest.mark.usefixtures("quiet_libraries")

SHAPE = {"vocab_size": 97, "intermediate_size": 60, "num_hidden_layers": 3}
"""Rows that two processes do not divide evenly."""


def watch_processes(folder: Path, config: Any, settings: Any) -> dict[str, list[int]]:
    """Return what one of two real processes saw."""
    question = {"config": config.to_dict(), "settings": settings.model_dump(mode="json")}
    (folder / "question.json").write_text(json.dumps(question), "utf-8")
    script = Path(__file__).with_name("sharded_process.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=child_environment(PYTHONWARNINGS="ignore"),
        )
        for rank in range(NUM_PROCESSES)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    seen: dict[str, list[int]] = json.loads((folder / "seen.json").read_text("utf-8"))
    return seen


def trace_one_of_them(config: Any, settings: Any) -> tuple[list[int], Trace, int]:
    """Return the bytes of shards, the predicted trace, and where in it the steps start."""
    from transformers import AutoModelForCausalLM

    from lorafit.model.build import add_adapter, decoder_layers

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=settings.attn_implementation
        )
    model, _ = add_adapter(base, settings)
    weights = [weight for weight in model.parameters() if not weight.requires_grad]
    adapter = [weight for weight in model.parameters() if weight.requires_grad]
    tracer = ResizeTracer("meta")
    tracer.know(adapter)
    with CpuOperators(), tracer:
        Sharding(tracer, NUM_PROCESSES).install(base, decoder_layers(base), on_host=False)
        start = len(tracer.trace.events)
        optimizer = trace_steps(model, tracer, settings, torch.device("meta"))
        trace = tracer.finish()
    del optimizer
    shards = [shard_bytes(weight, NUM_PROCESSES) for weight in weights]
    return shards, trace, start


def births(events: list[int], sizes: list[int]) -> list[int]:
    """Return the storages that `numbered` tells of, in the order of their births."""
    return [event for event in events if event > 0 and sizes[event] > 64]


def numbered(events: list[int], sizes: list[int], held: set[int]) -> list[tuple[int, int]]:
    """Return (storage, bytes) at birth and (storage, -1) at death, numbered by birth.

    Storages of up to 64 bytes are left out: counters that an optimizer keeps on the host. Between
    two births, which of several storages ends first is no matter: a graph that falls apart frees
    what it holds in the order of its nodes' addresses. The ends of those in `held`, by number, are
    left out too: gloo's own thread gathers into them, and lets go of them when it is its turn.
    """
    numbers: dict[int, int] = {}
    told: list[tuple[int, int]] = []
    ended: list[tuple[int, int]] = []
    for event in events:
        size = sizes[abs(event)]
        if size <= 64:
            continue
        if event < 0:
            ended += [(numbers[-event], -1)] if numbers[-event] not in held else []
            continue
        numbers[event] = len(numbers)
        told += [*sorted(ended), (numbers[event], size)]
        ended = []
    return told + sorted(ended)


def peak(events: list[int], sizes: list[int], held: set[int]) -> int:
    """Return the most bytes that are there at a time, of those that `numbered` tells of."""
    left_out = {event for number, event in enumerate(births(events, sizes)) if number in held}
    live = largest = 0
    for event in events:
        counts = sizes[abs(event)] > 64 and abs(event) not in left_out
        live += (sizes[abs(event)] if event > 0 else -sizes[abs(event)]) if counts else 0
        largest = max(largest, live)
    return largest


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        pytest.param("llama", {"gradient_checkpointing": False}, marks=pytest.mark.slow),
        ("phi", {"gradient_checkpointing": True}),
        pytest.param(
            "mistral",
            {"gradient_checkpointing": True, "checkpointed_layers": 1, "kernels": "stock"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_shards_and_gathered_weights_equal_those_of_two_real_processes(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    config, settings = make_config(model_type, **SHAPE), make_settings(**options)
    shards, trace, start = trace_one_of_them(config, settings)
    seen = watch_processes(tmp_path, config, settings)
    assert sorted(seen["shards"]) == sorted(shards)
    predicted = list(trace.events[start:]), list(trace.sizes)
    real = seen["events"], seen["sizes"]
    held = {i for i, event in enumerate(births(*predicted)) if event in trace.gathered}
    assert held
    assert numbered(*predicted, held) == numbered(*real, held)
    assert peak(*predicted, held) == peak(*real, held)
    assert peak(*predicted, set()) <= peak(*real, set())
