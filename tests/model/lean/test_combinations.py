"""Random combinations of what a run can be: both kernels take the same optimizer steps.

The stock model takes every row alone, without padding and without recomputing anything: this is
the reference. The other one takes the same rows as a run would: padded or end to end, in
micro-batches of rows or of tokens, recomputed where the settings ask for it.
"""

import random
from typing import Any, NamedTuple

import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator, EndToEndCollator
from lorafit.data.micro_batches import MicroBatchLimits, plan_micro_batches
from lorafit.model.attention import ATTENTION_NAME
from lorafit.model.build import add_adapter, choose_loss
from lorafit.model.step import StepOutcome, make_optimizer, training_step
from tests.tiny import _config

STEPS = 3
PHI = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES: dict[str, dict[str, list[Any]]] = {
    "phi": {
        "resid_pdrop": [0.0],
        "hidden_act": ["gelu_new", "silu", "relu"],
        "partial_rotary_factor": [0.25, 0.5, 1.0],
        "qk_layernorm": [False, False, True],
    },
    "llama": {"attention_bias": [False, True], "mlp_bias": [False, True]},
    "mistral": {"sliding_window": [4, 8, None]},
    "qwen2": {"use_sliding_window": [False, True], "sliding_window": [5], "max_window_layers": [1]},
    "qwen3": {"use_sliding_window": [False, True], "sliding_window": [5], "max_window_layers": [1]},
    "gemma3": {
        "sliding_window": [4, 16],
        "layer_types": [["sliding_attention", "full_attention"]],
        "final_logit_softcapping": [None, 2.0],
    },
}


class Combination(NamedTuple):
    """One drawn combination."""

    architecture: str
    shape: dict[str, Any]
    settings: dict[str, Any]
    is_padded: bool
    tokens: int | None
    """Budget of a micro-batch; None: rows are counted."""


def draw(seed: int) -> Combination:
    choose = random.Random(seed)
    architecture = list(SHAPES)[seed % len(SHAPES)]
    options = SHAPES[architecture]
    shape = {name: choose.choice(values) for name, values in options.items()}
    shape["tie_word_embeddings"] = choose.random() < 0.3
    names = PHI if architecture == "phi" else GATED
    targets = choose.sample(names, choose.randint(1, len(names)))
    if choose.random() < 0.3 and not shape["tie_word_embeddings"]:
        targets.append("lm_head")
    saved = choose.choice([(), (), (), ("lm_head",), ("embed_tokens",), ("input_layernorm",)])
    settings = {
        "target_modules": tuple(targets),
        "modules_to_save": saved if not set(saved) & set(targets) else (),
        "lora_r": choose.choice([1, 3, 8, 64]),
        "lora_alpha": choose.choice([1.0, 2.5, 8.0]),
        "use_rslora": choose.random() < 0.3,
        "use_dora": choose.random() < 0.15,
        "gradient_checkpointing": choose.random() < 0.4,
        "per_device_train_batch_size": choose.choice([1, 2, 3, 32]),
        "label_smoothing_factor": choose.choice([0.0, 0.0, 0.2]),
        "max_grad_norm": choose.choice([0.0, 0.05, 1.0]),
        "weight_decay": choose.choice([0.0, 0.1]),
        # Others make whole updates of gradients that are rounding alone.
        "optim": "sgd",
    }
    if settings["gradient_checkpointing"] and choose.random() < 0.5:
        settings["checkpointed_layers"] = 1
    is_padded = choose.random() < 0.3
    tokens = None if is_padded else choose.choice([20, 64, 1000])
    return Combination(architecture, shape, settings, is_padded, tokens)


def make_steps(seed: int) -> list[list[dict[str, list[int]]]]:
    """Return the rows of each step, from two tokens on; each has something to learn."""
    choose = random.Random(seed)
    steps = []
    for _ in range(STEPS):
        rows = []
        for length in (12, *(choose.choice([2, 9, choose.randint(3, 40)]) for _ in range(4))):
            ids = [choose.randint(3, 299) for _ in range(length)]
            start = choose.choice([0, length // 2, length - 1])
            rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
        steps.append(rows)
    return steps


def count_targets(row: dict[str, list[int]]) -> int:
    return sum(label != -100 for label in row["labels"][1:])


def build(case: Combination, kernels: str) -> tuple[Any, Settings]:
    from transformers import AutoModelForCausalLM

    settings = Settings(**case.settings, kernels=kernels, lora_dropout=0.0, learning_rate=1e-2)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(
        _config(case.architecture, dict(case.shape)),
        attn_implementation=ATTENTION_NAME if kernels == "lorafit" else "eager",
        dtype=torch.float32,
    )
    model, _ = add_adapter(base, settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would leave A without a gradient
                parameter.normal_(0, 0.05, generator=generator)
    return model, settings


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def reference_steps(
    case: Combination, seed: int
) -> tuple[list[StepOutcome], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the outcome of each step with stock layers, and the weights before and after."""
    plain = {"gradient_checkpointing": False, "checkpointed_layers": None}
    model, settings = build(case._replace(settings={**case.settings, **plain}), "stock")
    before = weights_of(model)
    optimizer = make_optimizer(model, settings)
    outcomes = []
    for rows in make_steps(seed):
        batches = [Collator(0)([row]) for row in rows]
        num_targets = sum(map(count_targets, rows))
        outcomes.append(training_step(model, optimizer, batches, num_targets, settings))
    return outcomes, before, weights_of(model)


def lean_steps(case: Combination, seed: int) -> tuple[list[StepOutcome], dict[str, torch.Tensor]]:
    """Return the outcome of each step as a run takes it, and the weights after."""
    model, settings = build(case, "lorafit")
    is_chunked = choose_loss(model.get_base_model(), settings).value
    collate: Any = Collator(0, pad_to_multiple_of=8, locate_targets=is_chunked)
    limits = MicroBatchLimits(settings.per_device_train_batch_size)
    if is_chunked and not case.is_padded:
        collate = EndToEndCollator(0, longest=40, pad_to_multiple_of=16, by_document=True)
        limits = MicroBatchLimits(limits.units, case.tokens)
    optimizer = make_optimizer(model, settings)
    outcomes = []
    for rows in make_steps(seed):
        lengths = [len(row["input_ids"]) for row in rows]
        parts = plan_micro_batches(lengths, limits)
        batches = [collate([rows[index] for index in part]) for part in parts]
        num_targets = sum(map(count_targets, rows))
        outcomes.append(training_step(model, optimizer, batches, num_targets, settings))
    return outcomes, weights_of(model)


def check_combination(seed: int) -> None:
    case = draw(seed)
    expected, before, after = reference_steps(case, seed)
    found, weights = lean_steps(case, seed)
    for one, other in zip(expected, found, strict=True):
        assert float(other.loss) == pytest.approx(float(one.loss), rel=1e-5, abs=1e-6), case
        if one.grad_norm is not None:
            assert float(other.grad_norm) == pytest.approx(float(one.grad_norm), rel=1e-4), case
    assert weights.keys() == after.keys(), case
    moved = sum(float((after[name] - before[name]).square().sum()) for name in after)
    apart = sum(float((after[name] - weights[name]).square().sum()) for name in after)
    assert moved > 0, case
    assert apart <= 1e-6 * moved, case


pytestmark = pytest.mark.usefixtures("quiet_libraries")


@pytest.mark.parametrize("seed", range(12))
def test_any_combination_takes_the_steps_of_stock_layers_row_by_row(seed: int) -> None:
    check_combination(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 36))
def test_many_combinations_take_the_steps_of_stock_layers_row_by_row(seed: int) -> None:
    check_combination(seed)
