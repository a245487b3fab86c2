"""What `lorafit data inspect` finds out: rows, lengths, labels, and which tokens are learnt."""

import hashlib
from array import array
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from lorafit.config.schema import Settings
from lorafit.data.dataset import IGNORED_LABEL, TokenizedDataset, count_distinct
from lorafit.data.load import scan_source, tokenize_source
from lorafit.data.progress import Tell, tell_nobody
from lorafit.data.records import Record, SourceFacts
from lorafit.data.report import describe_source, source_lines, source_warnings
from lorafit.data.sources import resolve_source
from lorafit.data.statistics import (
    HistogramBin,
    LabelBalance,
    LengthSummary,
    histogram,
    label_balance,
    smallest_max_length,
    summarize_lengths,
)
from lorafit.data.tokenize import num_characters
from lorafit.errors import UsageError


@dataclass(frozen=True)
class Inspection:
    """The findings about one file or hub data set."""

    records: SourceFacts
    sha256: str
    unit: str
    """What lengths are counted in: `tokens`, or `characters` where there is no tokenizer."""
    lengths: LengthSummary
    bins: list[HistogramBin]
    num_duplicates: int
    labels: LabelBalance | None
    max_length: int
    dataset: TokenizedDataset | None
    suggested_max_length: int | None
    lines: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as JSON types; what needs a tokenizer is null without one."""
        counts = self.dataset.counts if self.dataset else None
        return {
            "schema_version": 1,
            "source": self.records.name,
            "sha256": self.sha256,
            "kind": self.records.kind,
            "rows_read": self.records.num_rows_read,
            "empty": self.records.num_empty,
            "duplicates": self.num_duplicates,
            "ignored_fields": list(self.records.ignored_fields),
            "unit": self.unit,
            "lengths": asdict(self.lengths),
            "histogram": [asdict(bin_) for bin_ in self.bins],
            "max_length": self.max_length,
            "suggested_max_length": self.suggested_max_length,
            "counts": asdict(counts) if counts else None,
            "labels": asdict(self.labels) if self.labels else None,
            "warnings": self.warnings,
        }


def inspect_data(
    data: str, settings: Settings, tokenizer: Any | None, tell: Tell = tell_nobody
) -> Inspection:
    """Return what is in `data`; without a tokenizer, lengths are counted in characters.

    Nothing is refused for being too long here: the point is to see it. `tell` hears how far a
    large file is.

    Raises:
        UsageError, DataError, ConfigError: the data cannot be read or is wrong.
    """
    if tokenizer is None:
        return _inspect_characters(data, settings, tell)
    dataset, facts, sha256 = tokenize_source(data, settings, tokenizer, tell)
    report = describe_source(facts, dataset, sha256)
    return Inspection(
        records=facts,
        sha256=sha256,
        unit="tokens",
        lengths=report.lengths,
        bins=histogram(dataset.full_lengths),
        num_duplicates=dataset.counts.duplicates,
        labels=report.labels,
        max_length=settings.max_length,
        dataset=dataset,
        suggested_max_length=smallest_max_length(dataset.full_lengths),
        lines=source_lines(report, settings.max_length),
        warnings=source_warnings(report, settings.max_length),
    )


def _inspect_characters(data: str, settings: Settings, tell: Tell) -> Inspection:
    lengths: Counter[int] = Counter()
    # 8 bytes a row, so that 10 million rows need 80 MB; see `Keys.count_distinct`.
    keys = array("Q")

    def take(record: Record) -> None:
        lengths[num_characters(record)] += 1
        said = repr((record.prompt, record.completion, record.messages))
        keys.frombytes(hashlib.blake2b(said.encode(), digest_size=8).digest())

    source = resolve_source(data, settings.data_split)
    facts, sha256 = scan_source(source, settings, take, tell)
    summary = summarize_lengths(lengths)
    num_duplicates = len(keys) - count_distinct(keys)
    return Inspection(
        records=facts,
        sha256=sha256,
        unit="characters",
        lengths=summary,
        bins=histogram(lengths),
        num_duplicates=num_duplicates,
        labels=label_balance(facts.labels),
        max_length=settings.max_length,
        dataset=None,
        suggested_max_length=None,
        lines=[
            f"{facts.name}: {facts.num_rows_read} {facts.kind} rows; {facts.num_empty} "
            f"blank, {num_duplicates} repeated",
            f"characters a row: p50 {summary.p50}, p90 {summary.p90}, p99 {summary.p99}, "
            f"max {summary.max}",
        ],
        warnings=[],
    )


def masked_tokens(dataset: TokenizedDataset, number: int, tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the tokens of kept row `number`, from 1, each with whether it is learnt.

    Raises:
        UsageError: there is no such row.
    """
    if not 1 <= number <= len(dataset):
        raise UsageError(
            f"there is no row {number}: {len(dataset)} rows are kept", hint="--show-mask 1"
        )
    row = dataset[number - 1]
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    return [(tokenizer.decode([token]), label != IGNORED_LABEL) for token, label in pairs]
