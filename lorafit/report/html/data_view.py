"""The data of a run as the report shows it: counts, lengths and labels of each file."""

from dataclasses import dataclass
from typing import Any

from lorafit.report.html.source import RunData
from lorafit.report.html.words import show_whole


@dataclass(frozen=True)
class Labels:
    """How often each label occurs in a source."""

    label: str
    count: int
    share: float


@dataclass(frozen=True)
class SourceView:
    """One file of data."""

    title: str
    facts: list[tuple[str, str]]
    labels: list[Labels]


def sources_of(run: RunData) -> list[SourceView]:
    """Return the files of training and validation rows, each with its counts."""
    data = run.table("plan", "data")
    views = []
    for key, title in (("training", "Training data"), ("validation_source", "Validation data")):
        source = data.get(key)
        if isinstance(source, dict):
            views.append(_source(title, source))
    return views


def _source(title: str, source: dict[str, Any]) -> SourceView:
    counts, lengths = source.get("counts") or {}, source.get("lengths") or {}
    rows = [
        ("file", str(source.get("name"))),
        ("kind", str(source.get("kind"))),
        ("rows read", show_whole(source.get("rows_read"))),
        ("rows used", show_whole(counts.get("rows"))),
        ("blank", show_whole(source.get("empty"))),
        ("dropped", show_whole(counts.get("dropped"))),
        ("cut to max_length", show_whole(counts.get("truncated"))),
        ("repeated", show_whole(counts.get("duplicates"))),
        ("tokens", show_whole(counts.get("tokens"))),
        ("tokens learnt", show_whole(counts.get("supervised_tokens"))),
        ("tokens a row", ", ".join(f"{k} {show_whole(v)}" for k, v in lengths.items())),
        ("SHA-256", str(source.get("sha256"))),
    ]
    pairs = (source.get("labels") or {}).get("counts") or []
    total = sum(count for _, count in pairs) or 1
    most = max((count for _, count in pairs), default=1)
    labels = [Labels(str(label), count, count / most) for label, count in pairs if total]
    return SourceView(title, rows, labels)


def data_notes_of(run: RunData) -> list[str]:
    """Return how rows were divided, as sentences."""
    data = run.table("plan", "data")
    train, validation = data.get("train_counts") or {}, data.get("validation_counts") or {}
    notes = []
    if train:
        notes.append(
            f"training on {show_whole(train.get('rows'))} rows, validating on "
            f"{show_whole(validation.get('rows'))}"
        )
    notes += [str(data[key]) for key in ("split_reason", "chat_reason") if data.get(key)]
    if data.get("num_overlap"):
        notes.append(f"{show_whole(data['num_overlap'])} validation rows are also training rows")
    return notes
