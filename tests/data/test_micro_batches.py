"""A step's rows in micro-batches: each row once, within the limits, the same every time."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.micro_batches import (
    MicroBatchLimits,
    StepRows,
    gather_step,
    plan_micro_batches,
    token_budget,
)

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8], "labels": [8]},
    {"input_ids": [9, 9], "labels": [-100, -100]},
]


def rounded(batches, lengths, multiple):
    sums = [sum(lengths[index] for index in batch) for batch in batches]
    return sum(math.ceil(tokens / multiple) * multiple for tokens in sums)


@given(
    lengths=st.lists(st.integers(1, 60), max_size=40),
    budget=st.integers(20, 200),
    multiple=st.sampled_from((1, 8, 32)),
)
@settings(deadline=None)
def test_every_unit_is_taken_once_within_the_budget(lengths, budget, multiple):
    limits = MicroBatchLimits(4, budget, multiple)
    batches = plan_micro_batches(lengths, limits)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch == sorted(batch)
        assert len(batch) == 1 or sum(lengths[index] for index in batch) <= budget
    assert batches == plan_micro_batches(lengths, limits)
    unrounded = plan_micro_batches(lengths, MicroBatchLimits(4, budget))
    assert len(batches) == len(unrounded)
    assert rounded(batches, lengths, multiple) <= rounded(unrounded, lengths, multiple)


def test_rows_are_put_together_so_that_rounding_adds_little():
    lengths = [30, 40, 24, 34, 50, 14]  # 192: in order 94 + 98, which multiples of 64 make 256
    limits = MicroBatchLimits(4, 128, 64)
    assert rounded(plan_micro_batches(lengths, MicroBatchLimits(4, 128)), lengths, 64) == 256
    batches = plan_micro_batches(lengths, limits)
    assert len(batches) == 2
    assert rounded(batches, lengths, 64) == sum(lengths)


def test_padded_units_are_taken_in_order():
    assert plan_micro_batches([7, 1, 9, 2, 5], MicroBatchLimits(2)) == [[0, 1], [2, 3], [4]]
    assert plan_micro_batches([], MicroBatchLimits(2)) == []


def test_the_order_is_kept_where_that_takes_no_more_passes():
    assert plan_micro_batches([50, 40, 30, 60], MicroBatchLimits(4, 100)) == [[0, 1], [2, 3]]


def test_rows_are_reordered_only_to_save_a_pass():
    # In order: [60] [60 40] [40], three passes for 200 tokens.
    batches = plan_micro_batches([60, 60, 40, 40], MicroBatchLimits(4, 100))
    assert batches == [[0, 2], [1, 3]]


def test_micro_batches_are_of_like_size():
    # 110 tokens take two passes under a budget of 100: not one of 100 and one of 10.
    assert plan_micro_batches([10] * 11, MicroBatchLimits(4, 100)) == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
    ]


def test_a_unit_above_the_budget_goes_alone():
    assert plan_micro_batches([300, 10, 20], MicroBatchLimits(4, 100)) == [[0], [1, 2]]


def test_full_rows_take_as_many_passes_as_padded_ones():
    full = [64] * 12
    assert plan_micro_batches(full, MicroBatchLimits(4, 4 * 64)) == plan_micro_batches(
        full, MicroBatchLimits(4)
    )


def test_short_rows_take_far_fewer_passes():
    draw = random.Random(0)
    lengths = [draw.randint(10, 80) for _ in range(64)]
    padded = len(plan_micro_batches(lengths, MicroBatchLimits(8)))
    assert len(plan_micro_batches(lengths, MicroBatchLimits(8, 8 * 512))) < padded / 3


def test_a_step_counts_its_tokens_and_targets():
    step = gather_step(ROWS)
    assert step.lengths == [2, 1, 1]  # nothing is read behind a row's last target
    assert (step.num_tokens, step.num_targets) == (6, 2)
    assert step.rows_of([2, 0]) == [ROWS[2], ROWS[0]]


def test_a_bin_is_one_unit_of_several_rows():
    step = gather_step([tuple(ROWS[:2]), tuple(ROWS[2:])])
    assert step.lengths == [3, 1]
    assert step.num_targets == 2
    assert step.rows_of([0]) == ROWS[:2]


def test_libraries_pass_a_step_through_untouched():
    import torch
    from accelerate.utils import send_to_device

    step = gather_step(ROWS)
    assert send_to_device(step, torch.device("cpu")) is step
    loader = torch.utils.data.DataLoader(ROWS, batch_size=3, collate_fn=gather_step)
    assert next(iter(loader)) == StepRows(tuple((row,) for row in ROWS))


@pytest.mark.parametrize(
    ("units", "longest", "kind", "tokens"),
    [(4, 512, "cuda", 2048), (3, 100, "cuda", 384), (3, 100, "cpu", 320), (64, 512, "cpu", 1408),
     (2, 8192, "cpu", 8192), (3, 100, "mps", 300)],
)  # fmt: skip
def test_the_token_budget_and_its_reason(units, longest, kind, tokens):
    choice = token_budget(units, longest, kind)
    assert choice.value == tokens
    assert str(tokens) in choice.reason
