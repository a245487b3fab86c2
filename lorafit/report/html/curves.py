"""The curves of a run as columns, thinned to what a screen can show without losing a spike."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

METRICS = (
    "loss",
    "validation_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "memory_reserved_bytes",
)
METHOD_METRICS = ("reward", "reward_margin", "kl", "completion_length")
"""Metrics that only grpo or dpo have: a run without them has no such columns."""
MAX_BUCKETS = 400
"""Wider than a chart is in pixels divided by two, as each bucket keeps a low and a high."""

Columns = dict[str, list[float | None]]


def columns_of(events: Iterable[Mapping[str, Any]]) -> Columns:
    """Return `step` and every metric as columns of one length; None where a step has no value."""
    events = list(events)
    extra = [name for name in METHOD_METRICS if any(name in event for event in events)]
    metrics = (*METRICS, *extra)
    columns: Columns = {"step": [], **{metric: [] for metric in metrics}}
    for event in events:
        step = _number(event.get("step"))
        if step is None:
            continue
        columns["step"].append(step)
        for metric in metrics:
            columns[metric].append(_number(event.get(metric)))
    return columns


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def thin(columns: Columns, max_buckets: int = MAX_BUCKETS) -> Columns:
    """Return the columns with at most some rows a bucket of steps.

    Kept are the first and last row, every validation, and of each bucket the rows where a metric
    is lowest and highest, so that neither a spike nor a dip is lost.
    """
    count = len(columns["step"])
    if count <= 2 * max_buckets:
        return columns
    kept = {0, count - 1}
    kept.update(i for i, value in enumerate(columns["validation_loss"]) if value is not None)
    for bucket in range(max_buckets):
        rows = range(bucket * count // max_buckets, (bucket + 1) * count // max_buckets)
        for metric in columns.keys() - {"step"}:
            kept.update(_extremes(columns[metric], rows))
    order = sorted(kept)
    return {name: [column[i] for i in order] for name, column in columns.items()}


def _extremes(column: Sequence[float | None], rows: range) -> set[int]:
    valued = [(value, i) for i in rows if (value := column[i]) is not None]
    return {min(valued)[1], max(valued)[1]} if valued else set()


def table_rows(columns: Columns, max_rows: int = 40) -> list[dict[str, float | None]]:
    """Return evenly spaced rows and every validation, for readers who cannot see a canvas."""
    count = len(columns["step"])
    stride = max(1, math.ceil(count / max_rows))
    validated = columns["validation_loss"]
    chosen = [
        i for i in range(count) if i % stride == 0 or i == count - 1 or validated[i] is not None
    ]
    return [{name: column[i] for name, column in columns.items()} for i in chosen]
