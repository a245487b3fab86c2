import time

import pytest

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.model.architectures import bundled_config
from lorafit.report.flops import count_step_flops, find_peak_flops, measure_product_flops

PHI2 = bundled_config("microsoft/phi-2")
LAYER = 4 * 2560 * 2560 + 2 * 2560 * 10240  # q, k, v, dense, fc1, fc2
HEAD = 51200 * 2560


@pytest.mark.parametrize(
    ("settings", "forwards_again"),
    [
        ({"gradient_checkpointing": False}, 0),
        ({"gradient_checkpointing": True}, 32),
        ({"gradient_checkpointing": True, "checkpointed_layers": 10}, 10),
    ],
)
def test_phi2_takes_four_operations_a_weight_and_two_more_a_layer_computed_again(
    settings, forwards_again
):
    flops = count_step_flops(Settings(**settings), PHI2, 0)
    assert flops.per_token == 4 * 32 * LAYER + 2 * forwards_again * LAYER
    assert flops.of(100, 40) == 100 * flops.per_token + 40 * 4 * HEAD


def test_stock_kernels_compute_all_logits_and_adapters_take_six():
    flops = count_step_flops(
        Settings(kernels="stock", gradient_checkpointing=False), PHI2, 1_000_000
    )
    assert flops.per_token == 4 * 32 * LAYER + 6_000_000
    assert flops.of(100, 40) == 100 * (flops.per_token + 4 * HEAD)


def test_the_peak_is_the_catalogs_in_16_bit_and_unknown_where_it_is_not_certain():
    a10g = planned_device("a10g")
    found = find_peak_flops(a10g, "bfloat16")
    assert found is not None
    assert found.value == 70e12
    assert find_peak_flops(a10g, "float32") is None
    assert find_peak_flops(planned_device("m3-18gb"), "float32") is not None


def test_a_cpu_is_measured_quickly_and_draws_nothing_random():
    import torch

    before = torch.get_rng_state()
    started = time.process_time()
    flops = measure_product_flops("float32")
    assert 1e8 < flops < 1e15
    assert time.process_time() - started < 20
    assert torch.equal(before, torch.get_rng_state())
