import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.data.split import count_overlap, split_rows


def keys(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def test_holds_out_a_tenth_and_says_so():
    split = split_rows([str(i).encode() for i in range(100)], 0.1, seed=42)
    assert len(split.validation) == 10
    assert "10 of 100 rows are held out" in split.reason


def test_is_the_same_every_time_and_another_with_another_seed():
    rows = [str(i).encode() for i in range(50)]
    assert split_rows(rows, 0.2, seed=1) == split_rows(rows, 0.2, seed=1)
    assert split_rows(rows, 0.2, seed=1).validation != split_rows(rows, 0.2, seed=2).validation


def test_does_not_depend_on_the_order_of_rows():
    rows = [str(i).encode() for i in range(50)]
    held_out = {rows[i] for i in split_rows(rows, 0.2, seed=1).validation}
    backwards = rows[::-1]
    assert {backwards[i] for i in split_rows(backwards, 0.2, seed=1).validation} == held_out


def test_keeps_one_row_on_each_side_of_two():
    split = split_rows(keys("a", "b"), 0.1, seed=0)
    assert len(split.train) == len(split.validation) == 1


@pytest.mark.row("B36", "B46")
def test_b36_b46_one_row_or_only_copies_leave_nothing_to_validate_on():
    assert split_rows(keys("a"), 0.1, 0).reason == "no validation: there is one row"
    assert split_rows(keys("a", "a"), 0.1, 0).reason == "no validation: all rows are identical"
    assert not split_rows(keys("a", "b"), 0.0, 0).validation


@pytest.mark.row("B46")
def test_b46_counts_validation_rows_that_are_also_training_rows():
    assert count_overlap(keys("a", "b"), keys("b", "c", "b")) == 2


@given(
    st.lists(st.sampled_from("abcdefgh").map(str.encode), min_size=1, max_size=60),
    st.floats(0.01, 0.5),
    st.integers(0, 2**32 - 1),
)
def test_identical_rows_are_never_on_both_sides(rows, fraction, seed):
    split = split_rows(rows, fraction, seed)
    assert sorted(split.train + split.validation) == list(range(len(rows)))
    assert not {rows[i] for i in split.train} & {rows[i] for i in split.validation}
    assert split.train
    assert bool(split.validation) == (len(set(rows)) > 1)
