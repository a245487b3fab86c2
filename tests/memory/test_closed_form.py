import importlib.util
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory import lean_formulas
from lorafit.memory.closed_form import (
    QuickEstimate,
    describe_run,
    estimate_quickly,
    num_trained_parameters,
    weight_bytes,
)
from lorafit.memory.layer_formulas import layer_bytes
from lorafit.memory.lean_formulas import bytes_of_layer
from lorafit.model.architectures import bundled_config
from lorafit.units import GIB

BENCH = Path(__file__).parents[2] / "bench"
PHI2 = bundled_config("microsoft/phi-2") or {}
GEMMA3 = bundled_config("google/gemma-3-1b-pt") or {}
A10G = planned_device("a10g")


def settings(**options: Any) -> Settings:
    values: dict[str, Any] = {
        "max_length": 1024,
        "lora_r": 16,
        "lora_dropout": 0.0,
        "torch_compile": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
    }
    return Settings(**{**values, **options})


def quick(config: dict[str, Any] = PHI2, hardware: str = "a10g", **options: Any) -> QuickEstimate:
    return estimate_quickly(settings(**options), config, planned_device(hardware))


def load_bench() -> ModuleType:
    name = "fit_closed_form_bench"
    spec = importlib.util.spec_from_file_location(name, BENCH / "fit_closed_form.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# -- Terms, by hand


def test_phi_2_layer_saves_what_a_count_by_hand_gives() -> None:
    """Bytes a token of a layer in bfloat16, hidden size H = 2560, inner size 4 H, rank 16.

    Input of the norm 2 H + 8; fp32 inputs of q, k, v, dense, fc1 4 H each and of fc2 16 H; outputs
    of six A matrices 64 each; q, k, v and the output of flash attention 2 H each, 32 fp32 sums;
    four tensors of the GELU 8 H each; two masks of the residual dropout H each.
    """
    hidden = 2560
    adapters = 5 * 4 * hidden + 16 * hidden + 6 * 64
    by_hand = 2 * hidden + 8 + adapters + 4 * 2 * hidden + 32 * 4 + 4 * 8 * hidden + 2 * hidden
    assert layer_bytes(describe_run(settings(), PHI2, A10G)).saved == by_hand


def test_dropout_adds_a_mask_of_each_adapters_input() -> None:
    stock = settings(kernels="stock")
    plain = layer_bytes(describe_run(stock, PHI2, A10G)).saved
    drops = settings(kernels="stock", lora_dropout=0.05)
    dropped = layer_bytes(describe_run(drops, PHI2, A10G)).saved
    assert dropped - plain == 5 * 2560 + 10_240


def test_lean_phi_2_layer_saves_what_a_count_by_hand_gives() -> None:
    """Bytes a token in bfloat16, hidden size H = 2560, inner size 4 H, rank 16.

    Input of the norm 2 H + 8; q, k, v and the output of flash attention 2 H each, 32 fp32 sums;
    the inner layer before its activation 8 H; outputs of six A matrices 64 each. No masks.
    """
    hidden = 2560
    by_hand = 2 * hidden + 8 + 4 * 2 * hidden + 32 * 4 + 8 * hidden + 6 * 64
    for dropout in (0.0, 0.05):
        run = describe_run(settings(lora_dropout=dropout), PHI2, A10G)
        assert bytes_of_layer(run).saved == by_hand


def test_lean_gemma_3_layer_saves_what_a_count_by_hand_gives() -> None:
    """Bytes a token in bfloat16: H = 1152, I = 6912, 4 heads of 256 and one of keys, rank 16.

    Inputs of four norms 2 H + 4 each; queries and keys before their norms 2 x 1280 and 5 sums of 4;
    rotated queries, keys, values and the output of attention; gate and up 2 I each; 7 x 64.
    """
    run = describe_run(settings(max_length=512), GEMMA3, A10G)
    norms = 4 * (2 * 1152 + 4) + 2 * 1280 + 5 * 4
    attention = 2 * (2 * 1024 + 2 * 256) + 4 * 4
    assert bytes_of_layer(run).saved == norms + attention + 2 * 2 * 6912 + 7 * 64


@pytest.mark.parametrize(
    "options", [{"kernels": "stock"}, {"use_dora": True}, {"modules_to_save": ("lm_head",)}]
)
def test_layers_that_training_leaves_as_they_are_are_counted_as_such(
    options: dict[str, Any],
) -> None:
    run = describe_run(settings(**options), PHI2, A10G)
    assert bytes_of_layer(run) == layer_bytes(run)
    assert (
        bytes_of_layer(run).saved > 2 * bytes_of_layer(describe_run(settings(), PHI2, A10G)).saved
    )


@pytest.mark.usefixtures("quiet_libraries")
def test_lean_architectures_are_those_of_training() -> None:
    from lorafit.model.lean.install import ARCHITECTURES

    assert frozenset(ARCHITECTURES) == lean_formulas._MODEL_TYPES


def test_eager_attention_saves_probabilities_in_fp32_and_in_the_compute_dtype() -> None:
    fused = layer_bytes(describe_run(settings(), PHI2, A10G)).saved
    eager = layer_bytes(describe_run(settings(attn_implementation="eager"), PHI2, A10G)).saved
    assert eager - fused == 32 * 1024 * (4 + 2) - 2 * 2560 - 32 * 4


@pytest.mark.parametrize(
    ("options", "a_linear_weight"),
    [
        ({}, 2),
        ({"quantization": "nf4"}, 0.5 + (1 + 4 / 256) / 64),
        ({"quantization": "nf4", "double_quant": False}, 0.5 + 4 / 64),
    ],
)
def test_weights_take_the_bytes_of_their_format(
    options: dict[str, Any], a_linear_weight: float
) -> None:
    run = describe_run(settings(**options), PHI2, A10G)
    linear = 32 * (4 * 2560**2 + 2 * 2560 * 10_240)
    rest = 2_779_683_840 - linear
    assert weight_bytes(run.arch, run.settings, 2) == linear * a_linear_weight + rest * 2


def test_adapters_of_phi_2_are_counted_as_published() -> None:
    # r x (inputs + outputs): 4 x (2560 + 2560) + 2 x (2560 + 10240), 32 layers.
    run = describe_run(settings(), PHI2, A10G)
    assert num_trained_parameters(run) == 32 * 16 * (4 * 5120 + 2 * 12_800)
    only = describe_run(settings(target_modules=("q_proj", "v_proj")), PHI2, A10G)
    assert num_trained_parameters(only) == 32 * 16 * 2 * 5120
    output = describe_run(settings(target_modules=("q_proj", "lm_head")), PHI2, A10G)
    assert num_trained_parameters(output) == 32 * 16 * 5120 + 16 * (2560 + 51_200)


def test_stock_loss_holds_twelve_bytes_a_logit_and_the_chunked_one_a_chunk() -> None:
    stock = quick(kernels="stock", per_device_train_batch_size=8, gradient_checkpointing=True)
    assert stock.peak.phase == "loss"
    assert stock.breakdown["logits_bytes"] == 12 * 51_200 * 8 * 1024
    lean = quick(kernels="lorafit", per_device_train_batch_size=8, gradient_checkpointing=True)
    assert lean.peak.phase == "recompute"
    assert lean.peak.allocated_bytes < stock.peak.allocated_bytes - 2 * GIB


# -- The answer as a whole


@pytest.mark.parametrize("hardware", ["t4", "a10g", "h100", "m3-18gb"])
def test_parts_add_up_to_the_process(hardware: str) -> None:
    answer = quick(hardware=hardware)
    assert sum(answer.breakdown.values()) == answer.peak.process_bytes
    assert answer.peak.allocated_bytes <= answer.peak.reserved_bytes < answer.peak.process_bytes
    assert all(part >= 0 for part in answer.breakdown.values())


@given(
    config=st.sampled_from([PHI2, GEMMA3]),
    rows=st.integers(1, 16),
    length=st.integers(2, 40).map(lambda n: 64 * n),
    layers=st.integers(1, 25),
    dropout=st.sampled_from([0.0, 0.05]),
    attention=st.sampled_from(["auto", "eager"]),
    kernels=st.sampled_from(["stock", "lorafit"]),
    quantization=st.sampled_from(["none", "nf4"]),
)
def test_more_work_never_takes_less_and_more_checkpoints_never_more(
    config: dict[str, Any],
    rows: int,
    length: int,
    layers: int,
    dropout: float,
    attention: str,
    kernels: str,
    quantization: str,
) -> None:
    base: dict[str, Any] = {
        "per_device_train_batch_size": rows,
        "max_length": length,
        "gradient_checkpointing": True,
        "checkpointed_layers": layers,
        "lora_dropout": dropout,
        "attn_implementation": attention,
        "kernels": kernels,
        "quantization": quantization,
    }

    def peak(**changes: Any) -> int:
        return quick(config, **{**base, **changes}).peak.process_bytes

    reference = peak()
    assert peak(per_device_train_batch_size=rows + 1) >= reference
    assert peak(max_length=length + 64) >= reference
    assert peak(lora_r=32) >= reference
    assert peak(gradient_accumulation_steps=4) >= reference
    assert peak(checkpointed_layers=layers + 1) <= reference


def test_answer_takes_no_torch() -> None:
    code = (
        "import json, sys\n"
        "from lorafit.config.schema import Settings\n"
        "from lorafit.hardware.detect import planned_device\n"
        "from lorafit.memory.closed_form import estimate_quickly\n"
        "config = json.loads(sys.stdin.read())\n"
        "answer = estimate_quickly(Settings(), config, planned_device('a10g'))\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(answer.peak.process_bytes)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(PHI2),
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert int(outcome.stdout) > 5 * GIB


def test_answer_takes_under_fifty_milliseconds() -> None:
    quick()
    elapsed = []
    for _ in range(5):
        start = time.thread_time()
        quick()
        elapsed.append(time.thread_time() - start)
    assert min(elapsed) < 0.05


# -- Against traces


@pytest.mark.usefixtures("quiet_libraries")
def test_median_error_against_traces_is_below_its_bound() -> None:
    bench = load_bench()
    check_against_traces(bench, [few_layers(case) for case in bench.draw_cases(6, seed=11)])


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_libraries")
def test_median_error_over_a_larger_grid_is_below_its_bound() -> None:
    bench = load_bench()
    check_against_traces(bench, bench.draw_cases(60, seed=12))


def few_layers(case: Any) -> Any:
    """Return a case of the grid with three layers, which are traced in a second."""
    checkpointed = case.options["checkpointed_layers"]
    options = {**case.options, "checkpointed_layers": checkpointed and min(checkpointed, 3)}
    return replace(case, num_layers=3, options=options)


def check_against_traces(bench: ModuleType, cases: list[Any]) -> None:
    rows = [bench.compare(case) for case in cases]
    for errors in (
        [abs(row.allocated_error) for row in rows],
        [abs(row.process_error) for row in rows],
    ):
        assert statistics.median(errors) <= bench.MEDIAN_BOUND
        assert max(errors) <= 0.2
