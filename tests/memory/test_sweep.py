"""Ranges of a sweep, and the search for the largest micro-batch, with memory that is made up."""

from collections.abc import Callable

import pytest

from lorafit.errors import UsageError
from lorafit.memory.estimate import Estimate, Peak, Verdict
from lorafit.memory.sweep import largest_micro_batch, parse_sweep

CAPACITY = 1_000_000


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("per_device_train_batch_size=1..16", "per_device_train_batch_size", "1 2 4 8 16"),
        ("batch_size=1..12", "per_device_train_batch_size", "1 2 4 8 12"),
        ("batch-size=4..16:4", "per_device_train_batch_size", "4 8 12 16"),
        ("max_length=100..250:100", "max_length", "100 200 250"),
        ("max_seq_length=512, 1024,2048", "max_length", "512 1024 2048"),
        ("quantization=none,nf4", "quantization", "none nf4"),
        ("lora.rank=8..8", "lora_r", "8"),
        ("hardware=t4,a10g", "hardware", "t4 a10g"),
        ("max_length=512,512", "max_length", "512"),
    ],
)
def test_reads_ranges_lists_and_aliases(text: str, name: str, values: str) -> None:
    sweep = parse_sweep(text)
    assert (sweep.name, list(sweep.values)) == (name, values.split())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_length", "has no values"),
        ("max_length=", "has no values"),
        ("max_length=16..8", "is an empty range"),
        ("max_length=0..8", "is an empty range"),
        ("max_length=8..16:0", "is an empty range"),
        ("max_length=8,,16", "has an empty value"),
        ("max_length=1..100000000:1", "are more than 64"),
        ("max_lenght=1..8", "there is no such setting"),
    ],
)
def test_refuses_a_sweep_that_asks_nothing_and_says_what_to_write(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_sweep(text)
    assert caught.value.where == "--sweep"
    assert caught.value.hint


def memory(of: Callable[[int], int]) -> tuple[Callable[[int], Estimate], list[int]]:
    """Return an estimator whose process takes `of(rows)` bytes, and the rows it was asked for."""
    asked: list[int] = []

    def estimate(rows: int) -> Estimate:
        asked.append(rows)
        peak = Peak(of(rows), of(rows), of(rows), "backward")
        verdict: Verdict = "exceeds" if of(rows) > CAPACITY else "fits"
        return Estimate("m", {}, {}, peak, {}, CAPACITY, verdict, ("why",), 0.0)

    return estimate, asked


@pytest.mark.parametrize("rows_that_fit", [0, 1, 2, 3, 5, 17, 63, 64, 500])
@pytest.mark.parametrize(
    "shape",
    [
        lambda rows: 1000 * rows,
        lambda rows: 1000 * rows + 900 * (rows % 2),
        lambda rows: 3 * rows**2 + 1000 * rows,
        lambda rows: 100_000 + 1000 * (rows - rows % 8),
    ],
)
def test_finds_the_last_micro_batch_that_fits(
    rows_that_fit: int, shape: Callable[[int], int]
) -> None:
    limit_bytes = shape(rows_that_fit)

    def scaled(rows: int) -> int:
        return CAPACITY + max(shape(n) for n in range(rows + 1)) - limit_bytes

    estimate, asked = memory(scaled)
    expected = max((n for n in range(700) if scaled(n) <= CAPACITY), default=0)
    found = largest_micro_batch(estimate)
    assert found.rows == expected
    assert scaled(found.rows + 1) > CAPACITY
    assert found.rows + 1 in found.estimates
    assert len(asked) == len(set(asked))
    assert len(asked) <= 26


def test_memory_that_grows_evenly_takes_few_estimates() -> None:
    estimate, asked = memory(lambda rows: 200_000 + 7_919 * rows)
    assert largest_micro_batch(estimate).rows == 101
    assert len(asked) <= 6


def test_everything_that_is_allowed_may_fit() -> None:
    estimate, _ = memory(lambda rows: rows)
    assert largest_micro_batch(estimate, limit=40).rows == 40
