"""From settings to the rows of a run: reading, tokenizing, splitting, counting, in this order."""

from dataclasses import dataclass
from typing import Any

from lorafit.config.schema import Settings
from lorafit.data.capacity import require_memory
from lorafit.data.chat import load_chat_format
from lorafit.data.dataset import TokenizedDataset
from lorafit.data.fingerprint import file_state, hash_file, hash_records, verify_unchanged
from lorafit.data.records import RecordKind, RecordSet, read_records
from lorafit.data.report import DataReport, SourceReport, describe_source
from lorafit.data.sources import FileSource, HubSource, resolve_source
from lorafit.data.split import count_overlap, split_rows
from lorafit.data.tokenize import tokenize_records, verify_dropped
from lorafit.errors import DataError, UsageError


@dataclass(frozen=True)
class LoadedSource:
    """One file or hub data set, read and tokenized, with its counts."""

    dataset: TokenizedDataset
    kind: RecordKind
    report: SourceReport


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and validates on."""

    train: TokenizedDataset
    validation: TokenizedDataset | None
    kind: RecordKind
    labels_present: bool
    """Whether every row has a label, so that accuracy and macro-F1 can be measured."""
    report: DataReport


def load_training_data(settings: Settings, tokenizer: Any) -> TrainingData:
    """Return the training rows and, from a file or held out, the validation rows.

    Raises:
        UsageError: no data is named, or the name is empty, a URL or a pattern.
        DataError: data is missing, unreadable, wrong, or leaves nothing to learn.
        ConfigError: a template is malformed.
        ModelError: the tokenizer has no end-of-text token.
    """
    if settings.data is None:
        raise UsageError("no training data is named", hint="--data FILE.jsonl (or a hub id)")
    loaded = load_source(settings.data, settings, tokenizer)
    held_out: LoadedSource | None = None
    if settings.validation_data is not None:
        held_out = load_source(settings.validation_data, settings, tokenizer)
        _verify_same_kind(loaded, held_out)
        train, validation = loaded.dataset, held_out.dataset
        reason = f"validation rows come from {held_out.report.name}"
    else:
        split = split_rows(loaded.dataset.keys, settings.validation_split, settings.seed)
        train, reason = loaded.dataset.subset(split.train), split.reason
        validation = loaded.dataset.subset(split.validation)
    chat_reason = None
    if loaded.kind == "messages":
        chat_reason = load_chat_format(settings, tokenizer).reason
    report = DataReport(
        training=loaded.report,
        validation_source=held_out.report if held_out else None,
        train_counts=train.counts,
        validation_counts=validation.counts,
        num_overlap=count_overlap(train.keys, validation.keys),
        max_length=settings.max_length,
        split_reason=reason,
        chat_reason=chat_reason,
    )
    rows = [*train.records, *validation.records]
    return TrainingData(
        train=train,
        validation=validation if len(validation) else None,
        kind=loaded.kind,
        labels_present=all(record.label is not None for record in rows),
        report=report,
    )


def load_source(data: str, settings: Settings, tokenizer: Any) -> LoadedSource:
    """Return all rows of one file or hub data set, tokenized; nothing is held out.

    Raises:
        UsageError, DataError, ConfigError, ModelError: as `load_training_data`.
    """
    source = resolve_source(data, settings.data_split)
    records, sha256 = read_with_fingerprint(source, settings)
    dataset = tokenize_records(records.records, tokenizer, settings)
    verify_dropped(dataset.counts, records.num_empty, settings, records.name)
    return LoadedSource(dataset, records.kind, describe_source(records, dataset, sha256))


def read_with_fingerprint(
    source: FileSource | HubSource, settings: Settings
) -> tuple[RecordSet, str]:
    """Return the records of a source and the SHA-256 of what they were read from.

    Raises:
        DataError: as `read_records`, or the file changed meanwhile.
        MemoryFitError: its rows cannot fit in memory.
    """
    if isinstance(source, HubSource):
        records = read_records(source, settings)
        return records, hash_records(records.records)
    require_memory(source)
    before = file_state(source)
    records = read_records(source, settings)
    sha256 = hash_file(source)
    verify_unchanged(source, before)
    return records, sha256


def _verify_same_kind(training: LoadedSource, validation: LoadedSource) -> None:
    if training.kind != validation.kind:
        raise DataError(
            f"its rows are of the kind {validation.kind}, the training rows are {training.kind}: "
            "their losses could not be compared",
            where=validation.report.name,
            hint="bring both files to one kind",
        )
