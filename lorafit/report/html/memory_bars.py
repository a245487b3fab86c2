"""Predicted memory by component beside the measured peak, as bars on one scale."""

from dataclasses import dataclass
from typing import NamedTuple

from lorafit.memory.parts import PARTS
from lorafit.report.html.source import RunData
from lorafit.report.html.words import ABSENT
from lorafit.units import format_bytes


class Segment(NamedTuple):
    """One component of the predicted peak."""

    label: str
    colour: str
    shown: str
    share: float
    """Of the predicted peak."""
    start: float
    """Left end on the scale, 0 to 100."""
    width: float
    """Length on the scale, 0 to 100."""


@dataclass(frozen=True)
class MemoryView:
    """The bars, and the sentence that compares them."""

    segments: list[Segment]
    predicted: str
    measured: str
    measured_width: float
    """Length on the scale, 0 to 100; 0 while nothing is measured."""
    comparison: str
    capacity: str
    verdict: str
    phase: str
    is_calibrated: bool


def memory_view(run: RunData, measured_bytes: int | None) -> MemoryView | None:
    """Return predicted and measured memory, or None for a run without a prediction."""
    plan = run.table("plan", "memory")
    parts = run.table("plan", "memory", "breakdown")
    known = [(part, int(parts.get(part.key) or 0)) for part in PARTS]
    total = sum(size for _, size in known)
    if not total:
        return None
    predicted = int(plan.get("process_bytes") or total)
    measured = int(measured_bytes or 0)
    scale = 100 / max(total, measured)
    segments, start = [], 0.0
    for part, size in known:
        if size:
            width = size * scale
            shown = format_bytes(size)
            segments.append(Segment(part.label, part.colour, shown, size / total, start, width))
            start += width
    return MemoryView(
        segments=segments,
        predicted=format_bytes(predicted),
        measured=format_bytes(measured) if measured else ABSENT,
        measured_width=measured * scale,
        comparison=_compare(predicted, measured),
        capacity=format_bytes(plan["capacity_bytes"]) if plan.get("capacity_bytes") else "",
        verdict=str(plan.get("verdict") or ""),
        phase=str(plan.get("phase") or ""),
        is_calibrated=bool(plan.get("calibrated")),
    )


def _compare(predicted: int, measured: int) -> str:
    if not measured:
        return "Nothing was measured yet"
    difference = measured - predicted
    side = "above" if difference > 0 else "below"
    return (
        f"Measured {format_bytes(abs(difference))} ({abs(difference) / predicted:.1%}) {side} "
        "the prediction"
    )
