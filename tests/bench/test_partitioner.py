"""What the comparison with the partitioner counts, on a layer small enough to know it."""

import partitioner
import pytest
import torch

TOKENS, HIDDEN = 32, 64


@pytest.fixture(autouse=True)
def _small(monkeypatch, quiet_libraries):
    small = {"hidden_size": HIDDEN, "intermediate_size": 256, "num_attention_heads": 4,
             "num_key_value_heads": 4}  # fmt: skip
    monkeypatch.setattr(partitioner, "PHI_2", {**partitioner.PHI_2, **small})


def saved(name, dropout=0.0):
    return partitioner.Layer(name, torch.float32, dropout, TOKENS).saved_bytes()


def test_a_checkpointed_layer_keeps_its_input_and_a_lean_one_less_than_stock():
    assert saved(partitioner.CHECKPOINTED) == TOKENS * HIDDEN * 4
    assert saved(partitioner.CHECKPOINTED) < saved(partitioner.LEAN) < saved(partitioner.STOCK)


def test_dropout_costs_a_stock_layer_masks_and_a_lean_one_nothing():
    assert saved(partitioner.LEAN, 0.1) == saved(partitioner.LEAN)
    assert saved(partitioner.STOCK, 0.1) > saved(partitioner.STOCK)


def test_one_product_gives_what_separate_ones_give():
    product = partitioner.compare_products("fc1", 32, 64, torch.float32, 16, 1)
    assert product.largest_difference < 1e-5
    assert product.gflop == pytest.approx(2 * 16 * (2 * 32 * 64 + 3 * 16 * 96) / 1e9)


def test_functions_run_in_turns_after_a_warm_up():
    order = []
    times = partitioner.interleave([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["a", "b"] * 3
    assert [len(own) for own in times] == [2, 2]
