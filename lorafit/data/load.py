"""From settings to the rows of a run: reading, tokenizing, splitting, counting, in this order."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lorafit.config.schema import Settings
from lorafit.data.chat import load_chat_format
from lorafit.data.dataset import TokenizedDataset
from lorafit.data.fingerprint import file_state, hash_file, hash_records, verify_unchanged
from lorafit.data.problems import Problems
from lorafit.data.progress import Tell, tell_nobody
from lorafit.data.reading import iterate_rows
from lorafit.data.records import Record, RecordKind, RecordReader, SourceFacts
from lorafit.data.report import DataReport, SourceReport, describe_source
from lorafit.data.sources import FileSource, HubSource, is_large, resolve_source
from lorafit.data.split import count_overlap, split_rows
from lorafit.data.tokenize import tokenize_records, verify_dropped
from lorafit.errors import DataError, UsageError

_ROWS_A_TELLING = 10_000


@dataclass(frozen=True)
class LoadedSource:
    """One file or hub data set, read and tokenized, with its counts."""

    dataset: TokenizedDataset
    kind: RecordKind
    report: SourceReport
    is_labelled: bool
    """Whether every row has a label."""


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and validates on."""

    train: TokenizedDataset
    validation: TokenizedDataset | None
    kind: RecordKind
    labels_present: bool
    """Whether every row has a label, so that accuracy and macro-F1 can be measured."""
    report: DataReport


def load_training_data(
    settings: Settings, tokenizer: Any, tell: Tell = tell_nobody
) -> TrainingData:
    """Return the training rows and, from a file or held out, the validation rows.

    `tell` hears how far a large file is.

    Raises:
        UsageError: no data is named, or the name is empty, a URL or a pattern.
        DataError: data is missing, unreadable, wrong, or leaves nothing to learn.
        ConfigError: a template is malformed.
        ModelError: the tokenizer has no end-of-text token.
        StorageError: the rows of a large file do not fit on the disk.
    """
    if settings.data is None:
        raise UsageError("no training data is named", hint="--data FILE.jsonl (or a hub id)")
    loaded = load_source(settings.data, settings, tokenizer, tell)
    held_out: LoadedSource | None = None
    if settings.validation_data is not None:
        held_out = load_source(settings.validation_data, settings, tokenizer, tell)
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
        # Rows that were held out are none of those that are left.
        num_overlap=count_overlap(train.keys, validation.keys) if held_out else 0,
        max_length=settings.max_length,
        split_reason=reason,
        chat_reason=chat_reason,
    )
    return TrainingData(
        train=train,
        validation=validation if len(validation) else None,
        kind=loaded.kind,
        labels_present=loaded.is_labelled and (held_out is None or held_out.is_labelled),
        report=report,
    )


def load_source(
    data: str, settings: Settings, tokenizer: Any, tell: Tell = tell_nobody
) -> LoadedSource:
    """Return all rows of one file or hub data set, tokenized; nothing is held out.

    Small ones are held in memory, large ones are mapped; the rows are the same.

    Raises:
        UsageError, DataError, ConfigError, ModelError, StorageError: as `load_training_data`.
    """
    dataset, facts, sha256 = tokenize_source(data, settings, tokenizer, tell)
    verify_dropped(dataset.counts, facts.num_empty, settings, facts.name)
    report = describe_source(facts, dataset, sha256)
    return LoadedSource(dataset, facts.kind, report, dataset.is_labelled)


def tokenize_source(
    data: str, settings: Settings, tokenizer: Any, tell: Tell = tell_nobody
) -> tuple[TokenizedDataset, SourceFacts, str]:
    """Return rows, facts and SHA-256 of a source, however few rows are left.

    Raises:
        UsageError, DataError, ConfigError, ModelError, StorageError: as `load_training_data`.
    """
    source = resolve_source(data, settings.data_split)
    if isinstance(source, FileSource) and is_large(source):
        from lorafit.data.prepare import prepare_rows

        prepared = prepare_rows(source, settings, tokenizer, tell)
        return prepared.dataset, prepared.facts, prepared.sha256
    records: list[Record] = []
    facts, sha256 = scan_source(source, settings, records.append)
    return tokenize_records(records, tokenizer, settings), facts, sha256


def scan_source(
    source: FileSource | HubSource,
    settings: Settings,
    take: Callable[[Record], None],
    tell: Tell = tell_nobody,
) -> tuple[SourceFacts, str]:
    """Read a source once, hand each record to `take`; return what was found, and its SHA-256.

    `tell` hears how far it is, unless there are few rows.

    Raises:
        DataError: as `read_records`, or the file changed meanwhile.
        ConfigError: a template is malformed.
    """
    problems = Problems(source.name)
    reader = RecordReader(iterate_rows(source, problems), source.name, settings, problems)

    def records() -> Iterator[Record]:
        for number, record in enumerate(reader, 1):
            take(record)
            if number % _ROWS_A_TELLING == 0:
                tell("reading the data", reader.done, number)
            yield record

    if isinstance(source, HubSource):
        sha256 = hash_records(records())
        return reader.facts(), sha256
    before = file_state(source)
    deque(records(), maxlen=0)
    sha256 = hash_file(source)
    verify_unchanged(source, before)
    return reader.facts(), sha256


def _verify_same_kind(training: LoadedSource, validation: LoadedSource) -> None:
    if training.kind != validation.kind:
        raise DataError(
            f"its rows are of the kind {validation.kind}, the training rows are {training.kind}: "
            "their losses could not be compared",
            where=validation.report.name,
            hint="bring both files to one kind",
        )
