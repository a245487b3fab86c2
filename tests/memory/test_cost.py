import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.memory.cost import Throughput, Workload, expected_longest, step_seconds

# 4 layers of 1e9 parameters, a head of 0.5e9, rows of 1000 tokens, 16-bit weights.
WORK = Workload(
    num_layers=4,
    layer_parameters=1_000_000_000,
    head_parameters=500_000_000,
    attention_size=1000,
    layer_bytes=2e9,
    row_lengths=(1000,),
)
# 60 % and 80 % of these are 60 TFLOP/s and 800 GB/s.
DEVICE = Throughput(matmul_flops=100e12, bandwidth=1e12)


@pytest.mark.parametrize(
    ("lengths", "micro_batch", "expected"),
    [
        ((1000,), 8, 1000),
        ((10, 20), 1, 15),
        ((10, 20), 2, 20),
        # Pairs of 10, 20, 30: the longest is 20 once and 30 twice.
        ((10, 20, 30), 2, (20 + 30 + 30) / 3),
        # Pairs of 10, 10, 40: the longest is 10 once and 40 twice.
        ((10, 10, 40), 2, 30),
        ((10, 20, 30), 16, 30),
    ],
)
def test_expected_longest_row_of_a_micro_batch(
    lengths: tuple[int, ...], micro_batch: int, expected: float
) -> None:
    assert expected_longest(lengths, micro_batch) == pytest.approx(expected)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(1, 7))
def test_expected_longest_is_the_mean_over_all_draws(lengths: list[int], micro_batch: int) -> None:
    draws = itertools.combinations(lengths, min(micro_batch, len(lengths)))
    mean = statistics.mean(max(draw) for draw in draws)
    assert expected_longest(lengths, micro_batch) == pytest.approx(mean)


def test_data_sets_of_millions_of_rows_do_not_overflow() -> None:
    lengths = [length for length in range(1, 1001) for _ in range(1000)]
    # The largest of m draws from 1..n is m / (m + 1) x (n + 1) on average.
    assert expected_longest(lengths, 3) == pytest.approx(3 / 4 * 1001, rel=0.002)


def test_step_without_checkpoints_by_hand() -> None:
    """8 rows of 1000 tokens: products 2 x 1e9 FLOPs a token, layer and pass, 4 layers, 2 passes;

    attention 2 x 1000 x 1000 FLOPs a token, once forward and twice backward; the head twice 2 x
    0.5e9. Reads: 8 passes over a layer of 2e9 bytes.
    """
    flops = 8000 * (4 * (2 * 2e9 + 3 * 2e6) + 2e9)
    reads = 8 * 2e9 / 800e9
    assert step_seconds(WORK, DEVICE, 8, 3, 0) == pytest.approx(3 * (flops / 60e12 + reads))


def test_checkpointed_layer_adds_its_forward_and_reads_its_weights_again() -> None:
    without = step_seconds(WORK, DEVICE, 8, 1, 0)
    added = 8000 * (2e9 + 2e6) / 60e12 + 2e9 / 800e9
    assert step_seconds(WORK, DEVICE, 8, 1, 2) == pytest.approx(without + 2 * added)


def test_tiny_passes_cost_the_launch_of_their_kernels() -> None:
    tiny = Workload(4, 1000, 1000, 10, 2000, (10,))
    assert step_seconds(tiny, DEVICE, 1, 1, 0) == pytest.approx(8 * 80 * 5e-6)


def test_larger_micro_batches_are_a_little_faster_on_full_rows() -> None:
    seconds = [step_seconds(WORK, DEVICE, m, 32 // m, 0) for m in (1, 2, 4, 8, 16, 32)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[3] / seconds[5] < 1.02


def test_padding_makes_large_micro_batches_slower_on_uneven_rows() -> None:
    uneven = Workload(4, 10**9, 5 * 10**8, 1000, 2e9, (100,) * 9 + (4000,))
    assert step_seconds(uneven, DEVICE, 1, 8, 0) < 0.5 * step_seconds(uneven, DEVICE, 8, 1, 0)


@given(st.integers(1, 64), st.integers(0, 3))
def test_more_checkpoints_never_cost_less(micro_batch: int, layers: int) -> None:
    fewer = step_seconds(WORK, DEVICE, micro_batch, 1, layers)
    assert step_seconds(WORK, DEVICE, micro_batch, 1, layers + 1) >= fewer


def test_end_to_end_rows_cost_their_own_tokens_in_fewer_passes() -> None:
    uneven = Workload(4, 10**9, 5 * 10**8, 1000, 2e9, (100,) * 9 + (1000,))
    padded = step_seconds(uneven, DEVICE, 8, 4, 0)
    free = step_seconds(uneven, DEVICE, 8, 4, 0, end_to_end=True)
    assert free < padded / 2
    even = Workload(4, 10**9, 5 * 10**8, 1000, 2e9, (512,))
    assert step_seconds(even, DEVICE, 8, 4, 0, end_to_end=True) == pytest.approx(
        step_seconds(even, DEVICE, 8, 4, 0)
    )
