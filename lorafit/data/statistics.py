"""Statistics of a data set: how long its rows are, and how its labels are spread. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


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


def percentile(ordered: Sequence[int], share: float) -> int:
    """Return the smallest value that at least `share` of the sorted values do not exceed."""
    # 0.99 * 100 is 99.00000000000001 in binary: without rounding, ceil would give rank 100.
    rank = math.ceil(round(share * len(ordered), 9))
    return ordered[max(rank, 1) - 1]


def summarize_lengths(lengths: Sequence[int]) -> LengthSummary:
    """Return the percentiles of at least one length."""
    ordered = sorted(lengths)
    return LengthSummary(
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
        mean=sum(ordered) / len(ordered),
    )


def histogram(lengths: Sequence[int], max_bins: int = 12) -> list[HistogramBin]:
    """Return bins of one round width (1, 2 or 5 times a power of ten) that hold every length."""
    low, high = min(lengths), max(lengths)
    width = _round_width((high - low + 1) / max_bins)
    start = low // width * width
    while (high - start) // width + 1 > max_bins:
        width = _round_width(width + 1)
        start = low // width * width
    counts = Counter((length - start) // width for length in lengths)
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


def smallest_max_length(lengths: Sequence[int], share: float = 0.99) -> int:
    """Return the smallest max_length that cuts at most 1 - share rows.

    It is rounded up to a multiple of 8, or of 64 from 512 tokens on: the sizes that matrix
    products like. Never less than 8, the smallest max_length that the settings allow.
    """
    needed = percentile(sorted(lengths), share)
    multiple = 8 if needed <= 512 else 64
    return max(8, -(-needed // multiple) * multiple)


@dataclass(frozen=True)
class LabelBalance:
    """Rows of each label, the most frequent first, and the share of the most frequent one."""

    counts: tuple[tuple[str, int], ...]
    majority_share: float
    """Accuracy of always answering the most frequent label: the baseline to beat."""


def label_balance(labels: Sequence[str | None]) -> LabelBalance | None:
    """Return the balance of the labels, or None if no row has one."""
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        return None
    ordered = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return LabelBalance(ordered, ordered[0][1] / sum(counts.values()))
