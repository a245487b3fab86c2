"""Packing: whole rows put together into bins of `max_length` tokens.

The bin takes the row's place as what micro-batch and effective batch count. Which rows share a
bin depends on their lengths, their order and the seed alone, so that a resumed run has the same
bins.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from lorafit.data.dataset import TokenizedDataset
from lorafit.data.micro_batches import Row
from lorafit.units import format_count


@dataclass(frozen=True)
class Packing:
    """Rows in bins."""

    bins: tuple[tuple[int, ...], ...]
    """Indices of the rows of each bin."""
    tokens: tuple[int, ...]
    """Tokens in each bin."""
    capacity: int
    """Tokens that a bin can hold."""
    longest_row: int

    @property
    def fill(self) -> float:
        """Share of the bins' room that holds tokens."""
        return sum(self.tokens) / (len(self.bins) * self.capacity)

    @property
    def num_rows(self) -> int:
        """Rows in all bins."""
        return sum(map(len, self.bins))

    @property
    def padding_avoided(self) -> float:
        """Share of tokens that would be padding if every row were padded to the longest."""
        return 1 - sum(self.tokens) / (self.num_rows * self.longest_row)

    def describe(self) -> str:
        """Return rows, bins and how full they are, as a sentence."""
        return (
            f"packing: {format_count(self.num_rows)} rows in {format_count(len(self.bins))} bins "
            f"of {self.capacity} tokens, {self.fill:.1%} full; padded to the longest row, "
            f"{self.padding_avoided:.0%} of all tokens would be padding"
        )


def pack_rows(lengths: Sequence[int], capacity: int, seed: int) -> Packing:
    """Return rows in bins, by best fit decreasing.

    Rows are taken longest first; each goes into the fullest bin that has room for it, and of
    equally full ones into the oldest. Rows of equal length are taken in an order drawn from the
    seed, so that neighbours in the file are not neighbours in a bin. At most 11/9 of the fewest
    possible bins, and one, are needed (Johnson, 1973).

    Args:
        lengths: tokens of each row, none above `capacity`.
        capacity: tokens that a bin can hold.
        seed: of the order of rows of equal length.
    """
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)  # noqa: S311  # no secret
    order.sort(key=lambda index: -lengths[index])
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # tokens free: the bins, as heaps
    rooms: list[int] = []  # the numbers of tokens that are free in some bin, sorted
    for index in order:
        length = lengths[index]
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room = rooms[place]
            chosen = heappop(open_bins[room])
            if not open_bins[room]:
                del open_bins[room], rooms[place]
        bins[chosen].append(index)
        if room - length not in open_bins:
            open_bins[room - length] = []
            insort(rooms, room - length)
        heappush(open_bins[room - length], chosen)
    return Packing(
        bins=tuple(map(tuple, bins)),
        tokens=tuple(sum(lengths[index] for index in each) for each in bins),
        capacity=capacity,
        longest_row=max(lengths),
    )


class PackedDataset:
    """Bins of rows; a map-style data set for a torch DataLoader.

    `dataset[i]` is the tuple of the rows of bin `i`.
    """

    def __init__(self, rows: TokenizedDataset, packing: Packing) -> None:
        self._rows = rows
        self._packing = packing

    def __len__(self) -> int:
        return len(self._packing.bins)

    def __getitem__(self, index: int) -> tuple[Row, ...]:
        return tuple(self._rows[row] for row in self._packing.bins[index])
