"""An optimizer step's rows, and how they are split into the micro-batches that a device takes.

The loader hands over the rows of a whole step as one object. Splitting it is a pure function of
the rows and the limits: the same rows under smaller limits are the same step in more passes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorafit.data.dataset import IGNORED_LABEL
from lorafit.hardware.info import Choice, DeviceKind

CUDA_TOKEN_MULTIPLE = 128
"""On CUDA the tokens of a micro-batch are rounded up to this: products run in whole tiles, and
few sizes mean few compilations and a cache of memory blocks that fit again."""
CPU_TOKEN_MULTIPLE = 64
"""On a CPU they are rounded up to this, which oneDNN's products want: see `model/lean/products`."""
CPU_TOKENS = 1408
"""Tokens that a CPU takes at once. The fewer passes, the less often every product copies its
weights into a layout of its own. Measured on one core with a Phi of 10 M parameters and steps of 16
rows of 94 tokens, speed and peak memory by tokens: 1024 1.000 and 650 MiB, 1280 1.022 and 711, 1408
1.030 and 714, 1536 1.033 and 733, 2048 1.047 and 829."""

Row = Mapping[str, Sequence[int]]
"""`input_ids` and `labels` of one row, of equal length."""
Unit = tuple[Row, ...]
"""What the effective batch counts: one row, or the rows of one packed bin."""


@dataclass(frozen=True)
class StepRows:
    """The rows that one device takes in one optimizer step.

    Libraries between loader and training move, slice or concatenate what looks like a batch; this
    is opaque to them.
    """

    units: tuple[Unit, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each unit that the model has to read."""
        return [sum(tokens_read(row["labels"]) for row in unit) for unit in self.units]

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return sum(len(row["input_ids"]) for unit in self.units for row in unit)

    @property
    def num_targets(self) -> int:
        """Tokens with a loss: the first token of a row is predicted from nothing."""
        return sum(_count_targets(row["labels"]) for unit in self.units for row in unit)

    def rows_of(self, indices: Sequence[int]) -> list[Row]:
        """Return the rows of some of the units, in their order."""
        return [row for index in indices for row in self.units[index]]


def tokens_read(labels: Sequence[int]) -> int:
    """Return how many tokens of a row come before its last target: one at the least.

    What the model makes of the others is in no loss, where rows go end to end.
    """
    for last in range(len(labels) - 1, 1, -1):
        if labels[last] != IGNORED_LABEL:
            return last
    return 1


def _count_targets(labels: Sequence[int]) -> int:
    predicted = labels[1:]
    return len(predicted) - predicted.count(IGNORED_LABEL)


def gather_step(items: Sequence[Row | Unit]) -> StepRows:
    """Collate for a DataLoader whose batch is a whole optimizer step: keeps the rows as they are.

    An item is a row, or the rows of a packed bin.
    """
    return StepRows(tuple(item if isinstance(item, tuple) else (item,) for item in items))


@dataclass(frozen=True)
class MicroBatchLimits:
    """What one forward and backward pass may take at most."""

    units: int
    """Rows, or bins, that are padded to one length."""
    tokens: int | None = None
    """Without padding: tokens instead. A unit that alone has more is a micro-batch of its own."""
    multiple: int = 1
    """What those tokens are rounded up to."""


def plan_micro_batches(lengths: Sequence[int], limits: MicroBatchLimits) -> list[list[int]]:
    """Return which units, by index, go through the device together; each is in exactly one.

    Padded units are taken in order, `limits.units` at a time. With a token budget:

    1. The fewest micro-batches that keep the order: each takes units until the next would not
       fit. If first-fit decreasing needs fewer, its assignment is taken, every micro-batch in the
       order of the step.
    2. Where the order is kept, the budget is lowered as far as that number allows, so that no
       micro-batch is much larger than the others: the same passes at a lower peak of memory.
    3. If as many micro-batches can be put together so that rounding adds fewer tokens, they are.

    Args:
        lengths: tokens of each unit.
        limits: what a micro-batch may hold.
    """
    if limits.tokens is None:
        starts = range(0, len(lengths), limits.units)
        return [[*range(start, min(start + limits.units, len(lengths)))] for start in starts]
    plain = _fewest(lengths, limits.tokens)
    filled = _fill_multiples(lengths, len(plain), limits.tokens, limits.multiple)
    return min((plain, filled), key=lambda plan: _rounded_tokens(plan, lengths, limits.multiple))


def _fewest(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Return the fewest micro-batches, in order where that takes no more of them."""
    in_order = _fill_in_order(lengths, budget)
    tightest = _first_fit_decreasing(lengths, budget)
    if len(tightest) < len(in_order):
        return tightest
    low, high = min(max(lengths, default=0), budget), budget
    while low < high:
        middle = (low + high) // 2
        if len(_fill_in_order(lengths, middle)) <= len(in_order):
            high = middle
        else:
            low = middle + 1
    return _fill_in_order(lengths, low)


def _fill_in_order(lengths: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    used = 0
    for index, length in enumerate(lengths):
        if not batches or used + length > budget:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += length
    return batches


def _first_fit_decreasing(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put every unit, longest first, into the first micro-batch with room for it."""
    batches: list[list[int]] = []
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = next((p for p, room in enumerate(rooms) if room >= length), None)
        if place is None:
            place = len(batches)
            batches.append([])
            rooms.append(budget)
        batches[place].append(index)
        rooms[place] -= length
    return sorted(sorted(batch) for batch in batches)


def _fill_multiples(
    lengths: Sequence[int], count: int, budget: int, multiple: int
) -> list[list[int]]:
    """Return so many micro-batches of like size whose tokens are multiples, as far as can be.

    One after the other takes, of all sums that some of the units left have, one that rounding adds
    the least to. Nothing is returned where the last one would not fit.
    """
    left = [*range(len(lengths))]
    batches: list[list[int]] = []
    for still in range(count, 1, -1):
        total = sum(lengths[index] for index in left)
        reachable = _subset_sums([lengths[index] for index in left], budget)
        fitting = [
            size
            for size in range(max(1, total - (still - 1) * budget), min(budget, total) + 1)
            if reachable[-1] >> size & 1
        ]
        if not fitting:
            return []
        size = min(
            fitting,
            key=lambda size: (
                -size % multiple + (size - total) % multiple,
                abs(size * still - total),
            ),
        )
        batches.append([])
        for place in range(len(left) - 1, -1, -1):
            if not reachable[place] >> size & 1:  # it cannot be had without this unit
                batches[-1].append(left.pop(place))
                size -= lengths[batches[-1][-1]]
    batches.append(left)
    fits = all(batch and sum(lengths[i] for i in batch) <= budget for batch in batches)
    return sorted(sorted(batch) for batch in batches) if fits else []


def _subset_sums(lengths: Sequence[int], largest: int) -> list[int]:
    """Return, for the first n of the lengths, the sums that some of them have, as bits."""
    sums = [1]
    for length in lengths:
        sums.append((sums[-1] | sums[-1] << length) & ((1 << largest + 1) - 1))
    return sums


def _rounded_tokens(
    batches: Sequence[Sequence[int]], lengths: Sequence[int], multiple: int
) -> float:
    """Return the tokens of micro-batches, each rounded up; no micro-batches are no answer."""
    if not batches:
        return math.inf
    sums = (sum(lengths[index] for index in batch) for batch in batches)
    return sum(-(-tokens // multiple) * multiple for tokens in sums)


def token_multiple(device_kind: DeviceKind) -> int:
    """Return what the tokens of a micro-batch without padding are rounded up to."""
    return {"cuda": CUDA_TOKEN_MULTIPLE, "cpu": CPU_TOKEN_MULTIPLE}.get(device_kind, 1)


def token_budget(units: int, longest: int, device_kind: DeviceKind) -> Choice[int]:
    """Return how many tokens a micro-batch without padding takes at most, and why.

    Never more than full rows would: their estimate of memory stays an upper bound.

    Args:
        units: rows, or bins, of a padded micro-batch.
        longest: tokens of the longest of them.
        device_kind: where it runs.
    """
    full = units * longest
    if device_kind == "cpu" and full > CPU_TOKENS:
        tokens = max(CPU_TOKENS, longest)
        return Choice(
            tokens,
            f"up to {tokens} tokens a micro-batch: more would take memory and make a CPU hardly "
            "faster",
        )
    multiple = token_multiple(device_kind)
    tokens = -(-full // multiple) * multiple
    return Choice(tokens, f"up to {tokens} tokens a micro-batch, as {units} x {longest} would take")
