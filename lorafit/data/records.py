"""Records: what one row of training data says, whatever form it came in.

Kinds, told apart by their fields:

* `messages`: `messages`, a list of `{role, content}`, or ShareGPT's `conversations`, a list of
  `{from, value}`
* `prompt-completion`: `prompt` and `completion`
* `instruction`: `instruction` and `output`, perhaps `input`
* `text`: `text`
* `template`: any row, when `prompt_template` and `completion_template` are set
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lorafit.config.schema import Settings
from lorafit.data.kinds_hint import KINDS_HINT, kinds_hint
from lorafit.data.problems import Problems
from lorafit.data.reading import Row, iterate_rows, type_name
from lorafit.data.sources import FileSource, HubSource
from lorafit.data.templates import (
    RowError,
    RowTemplates,
    check_text,
    load_templates,
    render_instruction,
)
from lorafit.data.turns import Message, conversation_field, read_turns, verify_answered
from lorafit.errors import DataError
from lorafit.text import excerpt

RecordKind = Literal["text", "prompt-completion", "instruction", "messages", "template"]

# In the order in which they are looked for; every field must be there.
_REQUIRED_FIELDS: tuple[tuple[RecordKind, tuple[str, ...]], ...] = (
    ("messages", ("messages",)),
    ("messages", ("conversations",)),
    ("prompt-completion", ("prompt", "completion")),
    ("instruction", ("instruction", "output")),
    ("text", ("text",)),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One training example before tokenizing.

    `prompt` is None for plain text, and for `messages`, where `completion` is the last answer.
    """

    prompt: str | None
    completion: str
    messages: tuple[Message, ...] | None
    label: str | None
    source: str
    """Where it came from, such as `train.jsonl:12`."""


@dataclass(frozen=True)
class SourceFacts:
    """What reading a source to its end has found, beside the records themselves."""

    name: str
    kind: RecordKind
    num_rows_read: int
    num_empty: int
    """Rows left out because their prompt or completion is blank."""
    ignored_fields: tuple[str, ...]
    """Fields that no record uses."""
    labels: Counter[str]
    """Records of each label."""

    @property
    def num_records(self) -> int:
        """Records that the rows became."""
        return self.num_rows_read - self.num_empty


@dataclass(frozen=True)
class RecordSet:
    """The records of one file: all of one kind."""

    name: str
    kind: RecordKind
    records: list[Record]
    num_rows_read: int
    num_empty: int
    ignored_fields: tuple[str, ...]

    @property
    def facts(self) -> SourceFacts:
        """What was found, without the records; see `SourceFacts`."""
        labels = Counter(record.label for record in self.records if record.label is not None)
        return SourceFacts(
            self.name, self.kind, self.num_rows_read, self.num_empty, self.ignored_fields, labels
        )


def read_records(source: FileSource | HubSource, settings: Settings) -> RecordSet:
    """Return the records of a file or hub data set, all of them in memory.

    Raises:
        DataError: the data cannot be read, holds no rows, mixes kinds, or has rows that are
            wrong; the first five of these are shown and all counted.
        ConfigError: a template is malformed.
    """
    problems = Problems(source.name)
    return collect_records(iterate_rows(source, problems), source.name, settings, problems)


def collect_records(
    rows: Iterable[Row], name: str, settings: Settings, problems: Problems
) -> RecordSet:
    """Return the records made from `rows`; see `read_records`."""
    reader = RecordReader(rows, name, settings, problems)
    records = list(reader)
    facts = reader.facts()
    return RecordSet(
        name, facts.kind, records, facts.num_rows_read, facts.num_empty, facts.ignored_fields
    )


class RecordReader:
    """Makes records of rows one at a time; what is wrong with them is raised after the last one.

    Once `problems` holds any, the records that still come only serve to find the others.

    Raises:
        ConfigError: a template is malformed.
    """

    def __init__(
        self, rows: Iterable[Row], name: str, settings: Settings, problems: Problems
    ) -> None:
        self.problems = problems
        self.done = 0.0
        """Share of the source that has been read, where it is known."""
        self._rows = rows
        self._name = name
        self._label_field = settings.label_field
        self._templates = load_templates(settings)
        self._tally = _KindTally()
        self._labels: Counter[str] = Counter()
        self._used: set[str] = set()
        self._seen: set[str] = set()
        self._num_rows = self._num_empty = 0

    def __iter__(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            DataError: as `read_records`, after the last row.
        """
        num_records = 0
        for row in self._rows:
            record = self._record(row)
            self.done = row.done
            if record is not None:
                num_records += 1
                yield record
        self._tally.raise_if_mixed(self._name)
        self.problems.raise_if_any()
        if not num_records:
            raise _no_rows(self._name, self._num_rows)

    def _record(self, row: Row) -> Record | None:
        """Return the record of a row; None if it is blank, or wrong, which is noted."""
        self._num_rows += 1
        kind: RecordKind | None = "template" if self._templates else kind_of(row.fields)
        self._seen.update(row.fields)
        if kind is None:
            shown = excerpt(", ".join(map(str, row.fields)), 60) or "(none)"
            self.problems.add(
                row.where, f"not a known kind of row; its fields: {shown}", kinds_hint(row.fields)
            )
            return None
        self._tally.add(kind, row.where)
        if kind != self._tally.kind:
            return None
        try:
            record = _build(kind, row, self._templates, self._label_field)
        except RowError as problem:
            self.problems.add(row.where, str(problem), problem.hint)
            return None
        self._used |= _fields_used(kind, self._templates, self._label_field)
        if record is None:
            self._num_empty += 1
        elif record.label is not None:
            self._labels[record.label] += 1
        return record

    @property
    def is_sound(self) -> bool:
        """Whether nothing wrong has been found so far."""
        return not self.problems.count and len(self._tally.counts) < 2

    def facts(self) -> SourceFacts:
        """Return what was found, once all records have been taken."""
        assert self._tally.kind is not None
        ignored = tuple(sorted(excerpt(str(field), 40) for field in self._seen - self._used))
        return SourceFacts(
            self._name, self._tally.kind, self._num_rows, self._num_empty, ignored, self._labels
        )


def kind_of(fields: Mapping[str, Any]) -> RecordKind | None:
    """Return the kind of a row by the fields it has, or None."""
    for kind, required in _REQUIRED_FIELDS:
        if all(name in fields for name in required):
            return kind
    return None


@dataclass
class _KindTally:
    """Rows by kind, and where each kind was first seen."""

    counts: Counter[RecordKind] = field(default_factory=Counter)
    first: dict[RecordKind, str] = field(default_factory=dict)
    kind: RecordKind | None = None

    def add(self, kind: RecordKind, where: str) -> None:
        self.kind = self.kind or kind
        self.counts[kind] += 1
        self.first.setdefault(kind, where)

    def raise_if_mixed(self, name: str) -> None:
        if len(self.counts) < 2:
            return
        counted = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        offending = next(where for kind, where in self.first.items() if kind != self.kind)
        raise DataError(
            f"{name} mixes kinds of rows ({counted}), and a run trains on one; the first row that "
            f"is not {self.kind} is {offending}",
            where=offending,
            hint="give each kind its own file, or bring all rows to one kind",
        )


def _no_rows(name: str, num_rows: int) -> DataError:
    if num_rows:
        message = f"all {num_rows} rows are blank, so there is nothing to learn"
    else:
        message = "holds no rows"
    return DataError(message, where=name, hint=KINDS_HINT)


def _fields_used(
    kind: RecordKind, templates: RowTemplates | None, label_field: str | None
) -> frozenset[str]:
    label = frozenset({label_field or "label"})
    if templates:
        return templates.prompt.fields | templates.completion.fields | label
    names = {name for known, required in _REQUIRED_FIELDS if known == kind for name in required}
    return label | names | ({"input"} if kind == "instruction" else set())


def _build(
    kind: RecordKind, row: Row, templates: RowTemplates | None, label_field: str | None
) -> Record | None:
    """Return the record of a row, or None if there is nothing in it to learn."""
    fields = row.fields
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    if kind == "messages":
        name = conversation_field(fields)
        assert name is not None
        messages = read_turns(fields[name], name)
        verify_answered(messages)
        completion = messages[-1].content
    elif kind == "text":
        completion = _text(fields, "text")
    elif kind == "prompt-completion":
        prompt, completion = _text(fields, "prompt"), _text(fields, "completion")
    elif kind == "instruction":
        instruction, completion = _text(fields, "instruction"), _text(fields, "output")
        # A table without an input for this row has null, or nothing, there.
        extra = "" if fields.get("input") is None else _text(fields, "input")
        prompt = render_instruction(instruction, extra) if instruction.strip() else ""
    else:
        assert templates is not None
        prompt, completion = templates.prompt.render(fields), templates.completion.render(fields)
    label = _label(fields, label_field)
    if not completion.strip() or (prompt is not None and not prompt.strip()):
        return None
    return Record(prompt, completion, messages, label, row.where)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise RowError(f"{name!r} must be text, not {type_name(value)}")
    return check_text(value, name)


def _label(fields: Mapping[str, Any], label_field: str | None) -> str | None:
    name = label_field or "label"
    value = fields.get(name)
    if value is None and label_field:
        state = "null" if name in fields else "missing"
        raise RowError(f"the label field {name!r} is {state}")
    if value is None:
        return None
    if not isinstance(value, (str, int, float)):
        if label_field:
            raise RowError(f"the label {name!r} must be text or a number")
        return None
    return check_text(str(value), name)
