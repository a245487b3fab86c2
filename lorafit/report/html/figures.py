"""The figures of a run: recorded at its end, or counted from its events while it goes on."""

from collections.abc import Sequence
from typing import Any

from lorafit.report.html.source import RunData

STATUS_TONES = {"completed": "good", "running": "busy", "interrupted": "warn"}
"""How a status is coloured; every other one is bad."""


def figures_of(run: RunData) -> dict[str, Any]:
    """Return the run's results; those of a run that goes on are counted from its events."""
    recorded = run.table("results")
    counted = _count(run.events)
    # A resumed run records what it did itself; its events tell the whole story.
    merged = {**counted, **{name: v for name, v in recorded.items() if v is not None}}
    merged["tokens"] = max(counted["tokens"], recorded.get("tokens") or 0)
    if counted["first_loss"] is not None:
        merged["first_loss"] = counted["first_loss"]
    planned = run.table("plan", "memory").get("process_bytes")
    merged.setdefault("predicted_peak_memory_bytes", planned)
    merged["elapsed_seconds"] = run.record.get("elapsed_seconds")
    merged.setdefault("predicted_duration_seconds", run.table("plan", "duration").get("seconds"))
    return merged


def _count(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    validated = [(e["validation_loss"], e["step"]) for e in events if "validation_loss" in e]
    best = min(validated, default=(None, None))
    seconds = sum(e.get("seconds", 0) for e in events)
    tokens = sum(e.get("tokens", 0) for e in events)
    return {
        "steps": events[-1]["step"] if events else None,
        "first_loss": events[0].get("loss") if events else None,
        "final_loss": events[-1].get("loss") if events else None,
        "validation_loss": validated[-1][0] if validated else None,
        "best_validation_loss": best[0],
        "best_validation_step": best[1],
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else None,
        "peak_memory_bytes": max((e.get("memory_reserved_bytes", 0) for e in events), default=None),
        "checkpoints": [],
    }
