"""What is said about the data of a run: every row that was cut, dropped or blank is in a count."""

from dataclasses import asdict, dataclass
from typing import Any

from lorafit.data.dataset import TokenCounts, TokenizedDataset
from lorafit.data.records import RecordKind, SourceFacts
from lorafit.data.statistics import (
    LabelBalance,
    LengthSummary,
    label_balance,
    smallest_max_length,
    summarize_lengths,
)
from lorafit.text import excerpt

_MANY_DUPLICATES = 0.1


@dataclass(frozen=True)
class SourceReport:
    """The counts of one file or hub data set."""

    name: str
    sha256: str
    kind: RecordKind
    rows_read: int
    empty: int
    counts: TokenCounts
    lengths: LengthSummary
    """Tokens a row, before rows are cut to max_length."""
    suggested_max_length: int
    """The smallest max_length that cuts at most 1 % of the rows."""
    ignored_fields: tuple[str, ...]
    labels: LabelBalance | None


@dataclass(frozen=True)
class DataReport:
    """The data of a run, for the plan that is printed and for run.json."""

    training: SourceReport
    validation_source: SourceReport | None
    """Set when validation rows come from their own file."""
    train_counts: TokenCounts
    validation_counts: TokenCounts
    num_overlap: int
    """Validation rows that are also training rows."""
    max_length: int
    split_reason: str
    chat_reason: str | None

    @property
    def sha256(self) -> str:
        """Fingerprint of the training data."""
        return self.training.sha256

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before training, as sentences."""
        found = source_warnings(self.training, self.max_length)
        if self.validation_source:
            found += source_warnings(self.validation_source, self.max_length)
        if self.num_overlap:
            found.append(
                f"also in the training data: {self.num_overlap} of {self.validation_counts.rows} "
                "validation rows; the validation loss will look better than it is"
            )
        return tuple(found)

    def lines(self) -> list[str]:
        """Return the facts as sentences, one a line."""
        said = source_lines(self.training, self.max_length)
        if self.validation_source:
            said += source_lines(self.validation_source, self.max_length)
        train, validation = self.train_counts, self.validation_counts
        said.append(
            f"training on {train.rows} rows, {train.tokens} tokens of which "
            f"{train.supervised_tokens} are learnt; validating on {validation.rows} rows"
        )
        said.append(self.split_reason)
        if self.chat_reason:
            said.append(f"conversations are written by {self.chat_reason}")
        return said

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON types, for run.json."""
        return {
            **asdict(self),
            "sha256": self.sha256,
            "train_rows": self.train_counts.rows,
            "validation_rows": self.validation_counts.rows,
            "warnings": list(self.warnings),
        }


def describe_source(facts: SourceFacts, dataset: TokenizedDataset, sha256: str) -> SourceReport:
    """Return the counts of a source that was read and tokenized."""
    return SourceReport(
        name=facts.name,
        sha256=sha256,
        kind=facts.kind,
        rows_read=facts.num_rows_read,
        empty=facts.num_empty,
        counts=dataset.counts,
        lengths=summarize_lengths(dataset.full_lengths),
        suggested_max_length=smallest_max_length(dataset.full_lengths),
        ignored_fields=facts.ignored_fields,
        labels=label_balance(facts.labels),
    )


def source_lines(source: SourceReport, max_length: int) -> list[str]:
    """Return the counts of a source as sentences."""
    counts, lengths = source.counts, source.lengths
    said = [
        f"{source.name}: {source.rows_read} {source.kind} rows; {source.empty} blank, "
        f"{counts.dropped} dropped with nothing to learn, {counts.truncated} cut to "
        f"{max_length} tokens, {counts.duplicates} repeated",
        f"tokens a row: p50 {lengths.p50}, p90 {lengths.p90}, p99 {lengths.p99}, max {lengths.max}",
    ]
    if source.ignored_fields:
        said.append(f"fields that are not used: {excerpt(', '.join(source.ignored_fields), 120)}")
    if counts.separately_tokenized:
        said.append(
            "prompt and completion tokenized apart, so that the boundary is where generation has "
            f"it: {counts.separately_tokenized} of {counts.rows + counts.dropped} rows"
        )
    return said


def source_warnings(source: SourceReport, max_length: int) -> list[str]:
    """Return what is doubtful about a source, as sentences."""
    counts, found = source.counts, []
    kept = counts.rows
    if kept == 1:
        found.append(f"{source.name} has one usable row: a model can only learn it by heart")
    if source.empty:
        found.append(f"left out as blank: {source.empty} of {source.rows_read} rows")
    if counts.truncated:
        found.append(
            f"cut to max_length {max_length}, their end is lost: {counts.truncated} of "
            f"{kept + counts.dropped} rows; --max-length {source.suggested_max_length} keeps "
            f"99 %, the longest row has {source.lengths.max} tokens"
        )
    if counts.dropped:
        found.append(
            f"dropped, since the prompt alone fills max_length {max_length}: {counts.dropped} of "
            f"{kept + counts.dropped} rows; the first is {counts.first_dropped}"
        )
    if counts.special_text_rows:
        found.append(
            f"with a special token written out in the text, where it acts as that token: "
            f"{counts.special_text_rows} of {kept + counts.dropped} rows; the first is "
            f"{counts.first_special_text}"
        )
    if counts.duplicates and counts.duplicates >= _MANY_DUPLICATES * kept:
        found.append(
            "repeating an earlier row, so trained on more often: "
            f"{counts.duplicates} of {kept} rows"
        )
    return found
