"""Several runs side by side: a table of results, and where settings and circumstances differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorafit.config.fields import show_value
from lorafit.report.html.figures import STATUS_TONES, figures_of
from lorafit.report.html.source import RunData
from lorafit.report.html.words import ABSENT
from lorafit.units import format_bytes, format_duration

_IGNORED = frozenset({"output_dir"})
# A loss is one of these rows, written so: over others it is another figure.
_OF_THE_LOSS = (
    "data SHA-256", "validation_data", "validation_split", "prompt_template",
    "completion_template", "chat_template", "train_on_prompt",
)  # fmt: skip


@dataclass(frozen=True)
class ResultRow:
    """One run in the table of results."""

    name: str
    status: str
    tone: str
    cells: list[str]
    """In the order of `RESULT_COLUMNS`."""
    is_best: bool
    """Whether it has the lowest validation loss of those that have one, where they compare."""


RESULT_COLUMNS = (
    "steps", "training loss", "validation loss", "best validation", "tokens/s", "peak memory",
    "time",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A setting or circumstance that is not the same in all runs."""

    name: str
    values: list[str]


@dataclass(frozen=True)
class Comparison:
    """The page of several runs."""

    names: list[str]
    results: list[ResultRow]
    settings: list[Difference]
    circumstances: list[Difference]
    num_equal: int
    """Settings that all runs share."""
    incomparable: list[str]
    """What the runs differ in, if their losses cannot be held against each other."""


def compare_runs(runs: Sequence[RunData]) -> Comparison:
    """Return results and differences of at least two runs."""
    settings = _differences([_settings_of(run) for run in runs])
    circumstances = _differences([_circumstances(run) for run in runs])
    differing = {difference.name for difference in (*settings, *circumstances)}
    incomparable = [name for name in _OF_THE_LOSS if name in differing]
    names = {name for run in runs for name in run.settings} - _IGNORED
    return Comparison(
        names=[run.name for run in runs],
        results=_results(runs, is_comparable=not incomparable),
        settings=settings,
        circumstances=circumstances,
        num_equal=len(names) - len(settings),
        incomparable=incomparable,
    )


def _results(runs: Sequence[RunData], *, is_comparable: bool) -> list[ResultRow]:
    figures = [figures_of(run) for run in runs]
    best = [f["best_validation_loss"] for f in figures if f["best_validation_loss"] is not None]
    lowest = min(best, default=None) if is_comparable else None
    return [
        ResultRow(
            name=run.name,
            status=str(run.record["status"]),
            tone=STATUS_TONES.get(str(run.record["status"]), "bad"),
            cells=_cells(found),
            is_best=lowest is not None and found["best_validation_loss"] == lowest,
        )
        for run, found in zip(runs, figures, strict=True)
    ]


def _cells(figures: dict[str, Any]) -> list[str]:
    best, step = figures["best_validation_loss"], figures["best_validation_step"]
    peak, seconds = figures["peak_memory_bytes"], figures["elapsed_seconds"]
    return [
        _number(figures["steps"], ",.0f"),
        _number(figures["final_loss"], ".4f"),
        _number(figures["validation_loss"], ".4f"),
        ABSENT if best is None else f"{best:.4f} at {step}",
        _number(figures["tokens_per_second"], ",.0f"),
        format_bytes(peak) if peak else ABSENT,
        format_duration(seconds) if seconds else ABSENT,
    ]


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ABSENT


def _settings_of(run: RunData) -> dict[str, str]:
    return {k: show_value(v) for k, v in run.settings.items() if k not in _IGNORED}


def _circumstances(run: RunData) -> dict[str, str]:
    """Return what decides a result beside the settings: device, data, versions."""
    device, data = run.table("plan", "device"), run.table("plan", "data")
    facts = {
        "preset": run.record.get("preset") or "none",
        "device": device.get("name"),
        "data SHA-256": str(data.get("sha256") or "")[:16],
        "training rows": data.get("train_rows"),
        "effective batch": run.table("plan", "batch").get("effective_batch_size"),
        **run.table("versions"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _differences(tables: Sequence[dict[str, str]]) -> list[Difference]:
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [Difference(name, [table.get(name, ABSENT) for table in tables]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]
