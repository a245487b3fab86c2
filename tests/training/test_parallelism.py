"""What several processes do with the base weights, and what that takes."""

import pytest

from lorafit.config.layers import Resolved
from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.hardware.info import Choice
from lorafit.memory.estimate import Estimate, Peak, verdict_of
from lorafit.training.planning.parallelism import choose_parallelism, with_zero_stage
from lorafit.units import GIB, format_bytes

DEVICE = planned_device("a100-40gb")


def estimate(weights_gib, rest_gib=10):
    """Return the estimate of a run with so much base weights, and so much of everything else."""
    process = (weights_gib + rest_gib) * GIB
    peak = Peak(process - GIB, process - GIB, process, "backward")
    parts = {"weights_bytes": weights_gib * GIB, "activation_bytes": rest_gib * GIB}
    verdict = verdict_of(process, DEVICE.usable_bytes, fits_by_releasing=False)
    return Estimate("m", {}, {}, peak, parts, DEVICE.usable_bytes, verdict, ("dtype", "verdict"), 0)


def choose(whole, sharded=None, num_devices=4, memory_fraction=1.0, **settings):
    def estimate_sharded():
        assert sharded is not None, "nobody needs to know"
        return sharded

    return choose_parallelism(
        Settings(**settings), num_devices, DEVICE, whole, estimate_sharded, memory_fraction
    )


def test_one_process_has_nothing_to_choose():
    choice, chosen = choose(estimate(60), num_devices=1)
    assert choice.value == "none"
    assert chosen == estimate(60)


def test_what_fits_whole_stays_whole():
    choice, chosen = choose(estimate(13))
    assert choice.value == "ddp"
    assert "with the whole model a process takes 23.0 GiB, which the" in choice.reason
    assert chosen == estimate(13)


def test_what_does_not_fit_whole_is_shared_with_both_figures_in_the_reason():
    choice, chosen = choose(estimate(60), estimate(15))
    assert choice.value == "fsdp"
    assert "with the whole model a process takes 70.0 GiB, more than the" in choice.reason
    assert "with 1/4 of the base weights it takes 25.0 GiB" in choice.reason
    assert chosen == estimate(15)


def test_a_plan_that_leaves_memory_free_does_so_by_sharing():
    assert estimate(24).verdict == "fits"
    assert choose(estimate(24))[0].value == "ddp"
    choice, chosen = choose(estimate(24), estimate(6), memory_fraction=0.8)
    assert choice.value == "fsdp"
    assert chosen == estimate(6)


def test_int8_weights_stay_whole_even_where_they_do_not_fit():
    choice, chosen = choose(estimate(60), quantization="int8")
    assert choice.value == "ddp"
    assert "weights are not shared, as bitsandbytes" in choice.reason
    assert chosen.verdict == "exceeds"


@pytest.mark.parametrize(("asked", "weights"), [("ddp", 60), ("fsdp", 13)])
def test_what_is_asked_for_is_done_whether_it_fits_or_not(asked, weights):
    choice, chosen = choose(estimate(weights), estimate(5), parallelism=asked)
    assert choice.value == asked
    assert "as asked for" in choice.reason
    assert chosen == (estimate(weights) if asked == "ddp" else estimate(5))


@pytest.mark.parametrize(
    ("stage", "bytes_a_parameter", "what"),
    [
        (1, 8, "the adapter's optimizer state stay"),
        (2, 12, "the adapter's optimizer state and gradients stay"),
        (3, 12, "the adapter's optimizer state and gradients stay"),
    ],
)
def test_the_reason_says_what_zero_would_have_saved_in_each_process(stage, bytes_a_parameter, what):
    asked = Resolved(Settings(optim="adamw_torch"), {}, zero_stage=stage)
    choice = with_zero_stage(Choice("ddp", "ddp, as asked for"), asked, 20_000_000, 4)
    assert choice.value == "ddp"
    assert choice.reason.startswith(f"ddp, as asked for; ZeRO {stage} is done without DeepSpeed")
    assert what in choice.reason
    # Three of four parts would lie in other processes.
    assert f"{format_bytes(20_000_000 * bytes_a_parameter * 3 // 4)} more in" in choice.reason


@pytest.mark.parametrize("stage", [None, 0])
def test_without_a_stage_that_shares_the_reason_stays(stage):
    choice = Choice("ddp", "ddp, as asked for")
    asked = Resolved(Settings(), {}, zero_stage=stage)
    assert with_zero_stage(choice, asked, 20_000_000, 4) is choice
