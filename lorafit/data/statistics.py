"""Statistics of a data set: how long its rows are, and how its labels are spread. Pure.

Lengths and labels are given one by one, or counted already: rows of each.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Lengths = Mapping[int, int] | Iterable[int]


@dataclass(frozen=True)
class LengthSummary:
    """Nearest-rank percentiles of lengths: each is the length of a real row."""

    p50: int
    p90: int
    p99: int
    max: int
    mean: float


@dataclass(frozen=True)
class HistogramBin:
    """Rows with `low` <= length < `high`."""

    low: int
    high: int
    count: int


def percentile(lengths: Lengths, share: float) -> int:
    """Return the smallest value that at least `share` of the values do not exceed."""
    counts = Counter(lengths)
    # 0.99 * 100 is 99.00000000000001 in binary: without rounding, ceil would give rank 100.
    rank = max(1, math.ceil(round(share * counts.total(), 9)))
    for value, count in sorted(counts.items()):
        rank -= count
        if rank <= 0:
            return value
    raise ValueError("no lengths")


def summarize_lengths(lengths: Lengths) -> LengthSummary:
    """Return the percentiles of at least one length."""
    counts = Counter(lengths)
    return LengthSummary(
        p50=percentile(counts, 0.5),
        p90=percentile(counts, 0.9),
        p99=percentile(counts, 0.99),
        max=max(counts),
        mean=sum(length * count for length, count in counts.items()) / counts.total(),
    )


def histogram(lengths: Lengths, max_bins: int = 12) -> list[HistogramBin]:
    """Return bins of one round width (1, 2 or 5 times a power of ten) that hold every length."""
    rows = Counter(lengths)
    low, high = min(rows), max(rows)
    width = _round_width((high - low + 1) / max_bins)
    start = low // width * width
    while (high - start) // width + 1 > max_bins:
        width = _round_width(width + 1)
        start = low // width * width
    counts: Counter[int] = Counter()
    for length, count in rows.items():
        counts[(length - start) // width] += count
    return [
        HistogramBin(start + i * width, start + (i + 1) * width, counts[i])
        for i in range((high - start) // width + 1)
    ]


def _round_width(minimum: float) -> int:
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= minimum:
                return factor * power
        power *= 10


def smallest_max_length(lengths: Lengths, share: float = 0.99) -> int:
    """Return the smallest max_length that cuts at most 1 - share rows.

    It is rounded up to a multiple of 8, or of 64 from 512 tokens on: the sizes that matrix
    products like. Never less than 8, the smallest max_length that the settings allow.
    """
    needed = percentile(lengths, share)
    multiple = 8 if needed <= 512 else 64
    return max(8, -(-needed // multiple) * multiple)


@dataclass(frozen=True)
class LabelBalance:
    """Rows of each label, the most frequent first, and the share of the most frequent one."""

    counts: tuple[tuple[str, int], ...]
    majority_share: float
    """Accuracy of always answering the most frequent label: the baseline to beat."""


def label_balance(labels: Mapping[str, int] | Iterable[str | None]) -> LabelBalance | None:
    """Return the balance of the labels, or None if no row has one."""
    counts: Counter[str | None] = Counter(labels)
    ordered = tuple(
        sorted(
            ((label, count) for label, count in counts.items() if label is not None),
            key=lambda item: (-item[1], item[0]),
        )
    )
    if not ordered:
        return None
    return LabelBalance(ordered, ordered[0][1] / sum(count for _, count in ordered))
