import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.data.statistics import (
    histogram,
    label_balance,
    percentile,
    smallest_max_length,
    summarize_lengths,
)


def test_percentiles_of_one_to_a_hundred_are_their_own_rank():
    summary = summarize_lengths(list(range(100, 0, -1)))
    assert (summary.p50, summary.p90, summary.p99, summary.max) == (50, 90, 99, 100)
    assert summary.mean == 50.5


@pytest.mark.parametrize(("share", "expected"), [(0.0, 3), (0.5, 3), (0.51, 8), (1.0, 8)])
def test_percentiles_of_two_values(share, expected):
    assert percentile([3, 8], share) == expected


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=100))
def test_histogram_holds_every_row_in_at_most_twelve_bins(lengths):
    bins = histogram(lengths)
    assert len(bins) <= 12
    assert sum(bin_.count for bin_ in bins) == len(lengths)
    for bin_ in bins:
        assert bin_.count == sum(bin_.low <= length < bin_.high for length in lengths)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([3], 8),
        ([100] * 99 + [900], 104),
        ([100] * 98 + [900] * 2, 960),
        ([512], 512),
        ([513], 576),
    ],
)
def test_smallest_max_length_keeps_99_of_100_rows(lengths, expected):
    assert smallest_max_length(lengths) == expected


def test_label_balance_counts_and_gives_the_baseline():
    balance = label_balance(["yes", "no", "yes", None])
    assert balance.counts == (("yes", 2), ("no", 1))
    assert balance.majority_share == pytest.approx(2 / 3)
    assert label_balance([None]) is None
