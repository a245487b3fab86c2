"""What to change first: real estimates of a tiny model on a device as small as it needs."""

from dataclasses import replace
from typing import Any

import pytest

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.advice import Advice, advice_document, advise, flags_of, possible_changes
from lorafit.memory.estimate import Estimate, estimate_memory
from lorafit.units import GIB, MIB

pytestmark = pytest.mark.usefixtures("quiet_libraries")

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
}


def settings_of(**values: Any) -> Settings:
    common = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_length": 1024,
        "torch_compile": False,
    }
    return Settings(**{**common, **values})


def advice_for(settings: Settings, usable_bytes: int) -> tuple[Advice, Estimate]:
    device = replace(planned_device("a10g"), usable_bytes=usable_bytes)

    def estimate(changed: Settings) -> Estimate:
        return estimate_memory(changed, CONFIG, device)

    current = estimate(settings)
    return advise(settings, current, device.kind, estimate), current


def test_changes_stand_in_the_order_of_what_they_cost_a_person() -> None:
    settings = settings_of(
        kernels="stock", attn_implementation="eager", gradient_checkpointing=False, lora_r=64
    )
    assert [change.flags for change in possible_changes(settings, "cuda")] == [
        "--kernels lorafit",
        "--attn-implementation sdpa",
        "--per-device-train-batch-size 4 --gradient-accumulation-steps 2",
        "--gradient-checkpointing",
        "--quantization nf4",
        "--lora-r 32",
        "--max-length 512",
    ]


@pytest.mark.parametrize(("rows", "fewer"), [(2, 1), (3, 1), (6, 3), (9, 3), (7, 1)])
def test_a_smaller_micro_batch_keeps_the_effective_batch(rows: int, fewer: int) -> None:
    settings = settings_of(per_device_train_batch_size=rows, gradient_accumulation_steps=5)
    change = possible_changes(settings, "cuda")[0]
    assert change.values["per_device_train_batch_size"] == fewer
    assert fewer * change.values["gradient_accumulation_steps"] == rows * 5


def test_nothing_is_left_to_change_where_all_is_done() -> None:
    settings = settings_of(per_device_train_batch_size=1, quantization="nf4", max_length=128)
    assert possible_changes(settings, "cuda") == []


def test_flags_can_be_typed() -> None:
    values = {"gradient_checkpointing": False, "checkpointed_layers": None, "lora_r": 8}
    assert flags_of(values) == "--no-gradient-checkpointing --checkpointed-layers none --lora-r 8"


def test_a_run_that_fits_gets_no_advice() -> None:
    advice, current = advice_for(settings_of(), 24 * GIB)
    assert current.verdict == "fits"
    assert advice == Advice()


def test_bytes_saved_are_those_of_the_estimate_with_the_change_made() -> None:
    settings = settings_of(kernels="stock", gradient_checkpointing=False)
    advice, current = advice_for(settings, 1200 * MIB)
    assert current.verdict == "exceeds"
    assert advice.savings[0].flags == "--kernels lorafit"
    device = replace(planned_device("a10g"), usable_bytes=1200 * MIB)
    for saving in advice.savings:
        changed = settings.model_copy(update=saving.values)
        again = estimate_memory(changed, CONFIG, device).peak.process_bytes
        assert saving.saved_bytes == current.peak.process_bytes - again
        assert saving.saved_bytes > 0


def test_where_no_change_is_enough_the_cheapest_are_combined() -> None:
    settings = settings_of(kernels="stock", gradient_checkpointing=False)
    advice, current = advice_for(settings, 700 * MIB)
    assert all(saving.estimate.verdict == "exceeds" for saving in advice.savings)
    assert advice.together is not None
    assert advice.reached
    assert advice.together.estimate.verdict != "exceeds"
    assert advice.together.saved_bytes > max(saving.saved_bytes for saving in advice.savings)
    first = advice.together.values
    assert first["kernels"] == "lorafit"
    combined = settings.model_copy(update=dict(first))
    rows = combined.per_device_train_batch_size * combined.gradient_accumulation_steps
    assert rows == settings.per_device_train_batch_size
    document = advice_document(advice)
    assert document["together"]["flags"] == advice.together.flags
    assert document["together"]["saved_bytes"] == advice.together.saved_bytes
    assert [c["flags"] for c in document["changes"]] == [s.flags for s in advice.savings]
    assert current.verdict == "exceeds"


def test_says_so_when_nothing_is_enough() -> None:
    advice, _ = advice_for(settings_of(), 300 * MIB)
    assert not advice.reached
    assert advice.together is not None
    assert advice.together.estimate.verdict == "exceeds"
