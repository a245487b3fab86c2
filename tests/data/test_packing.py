"""Packing: every row in one bin, no bin too full, the same bins from the same rows and seed."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.packing import PackedDataset, pack_rows


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=80), seed=st.integers(0, 2**32 - 1)
)
@settings(deadline=None)
def test_every_row_is_in_one_bin_that_holds_it(lengths, seed):
    packing = pack_rows(lengths, 64, seed)
    assert sorted(row for each in packing.bins for row in each) == list(range(len(lengths)))
    assert packing.tokens == tuple(sum(lengths[row] for row in each) for each in packing.bins)
    assert max(packing.tokens) <= 64
    # No two bins could be one.
    emptiest = sorted(packing.tokens)[:2]
    assert len(emptiest) < 2 or sum(emptiest) > 64
    assert packing == pack_rows(lengths, 64, seed)


def test_best_fit_puts_a_row_where_least_room_is_left():
    # 60 and 50 open bins of 100; 40 fills the first to the last token, 30 goes to the second.
    assert pack_rows([60, 50, 40, 30], 100, 0).bins == ((0, 2), (1, 3))


def test_the_seed_decides_between_rows_of_equal_length():
    lengths = [8] * 40
    bins = {pack_rows(lengths, 32, seed).bins for seed in range(4)}
    assert len(bins) == 4


def test_real_lengths_fill_bins_almost_to_the_brim():
    draw = random.Random(0)
    lengths = [min(510, max(8, int(draw.lognormvariate(4.15, 0.85)))) for _ in range(500)]
    packing = pack_rows(lengths, 512, 42)
    assert packing.fill > 0.97
    assert packing.num_rows == 500
    assert packing.padding_avoided == pytest.approx(1 - sum(lengths) / (500 * max(lengths)))
    assert f"500 rows in {len(packing.bins)} bins of 512 tokens" in packing.describe()


def test_an_item_is_the_rows_of_a_bin():
    rows = ["a", "b", "c"]
    packing = pack_rows([6, 5, 4], 10, 0)
    dataset = PackedDataset(rows, packing)
    assert [dataset[index] for index in range(len(dataset))] == [("a", "c"), ("b",)]
