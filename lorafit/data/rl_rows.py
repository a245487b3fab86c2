"""Rows to learn from rewards or preferences: prompts with their fields, and pairs of answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorafit.config.schema import Settings
from lorafit.data.chat import ChatFormat, load_chat_format
from lorafit.data.dataset import IGNORED_LABEL, NO_ROWS, TokenizedDataset
from lorafit.data.encoding import encode_prompt, verify_embedded
from lorafit.data.fingerprint import file_state, hash_file, hash_records, verify_unchanged
from lorafit.data.load import TrainingData
from lorafit.data.preferences import read_conversations
from lorafit.data.problems import Problems
from lorafit.data.reading import Row, iterate_rows, type_name
from lorafit.data.records import Record, RecordKind, RecordSet
from lorafit.data.report import DataReport, describe_source
from lorafit.data.sources import HubSource, resolve_source
from lorafit.data.templates import RowError, check_text, render_prompt
from lorafit.data.tokenize import tokenize_records, verify_dropped
from lorafit.data.turns import Message, conversation_field, read_turns, verify_turns
from lorafit.errors import DataError, UsageError

_HINTS = {
    "grpo": "a row for grpo holds prompt, or messages or conversations that end with the user's; "
    "its other fields are handed to the reward functions",
    "dpo": "a row for dpo holds prompt, chosen and rejected, all of them text; or messages or "
    "conversations, and as chosen and rejected an answer each",
}
# Fields that hold text, or turns of a conversation.
_TEXT_OR_TURNS = {"grpo": ("prompt",), "dpo": ("prompt", "chosen", "rejected")}
# Names that reward functions are called with already.
_RESERVED = frozenset({"prompts", "completions", "completion", "completion_ids", "image", "images"})


@dataclass(frozen=True)
class MethodData(TrainingData):
    """Training data of grpo or dpo; `rows` is what TRL's trainer gets, one a row of `train`.

    For grpo: `prompt`, the text that the model reads, and the row's other fields. For dpo:
    `prompt_ids`, `chosen_ids` and `rejected_ids`.
    """

    rows: tuple[dict[str, Any], ...] = ()
    lengths: tuple[int, ...] = ()
    """Tokens that the longest sequence of each row can have."""


def load_method_data(settings: Settings, tokenizer: Any) -> MethodData:
    """Return the rows of a grpo or dpo run, all of them to train on.

    Raises:
        UsageError: no data is named.
        DataError: rows are missing, wrong, or too long.
        ModelError: the tokenizer has no end-of-text token.
    """
    if settings.data is None:
        raise UsageError("no training data is named", hint="--data FILE.jsonl (or a hub id)")
    source = resolve_source(settings.data, settings.data_split)
    problems = Problems(source.name)
    before = None if isinstance(source, HubSource) else file_state(source)
    rows = list(iterate_rows(source, problems))
    is_chat = bool(rows) and _is_conversation(rows[0], settings)
    chat = load_chat_format(settings, tokenizer) if is_chat else None
    build = _Builder(settings, tokenizer, chat, problems)
    made = [found for row in rows if (found := build.row(row)) is not None]
    problems.raise_if_any()
    if not made:
        raise DataError("holds no rows", where=source.name, hint=_HINTS[settings.method])
    records = [record for record, _ in made]
    if isinstance(source, HubSource) or before is None:
        sha256 = hash_records(records)
    else:
        sha256 = hash_file(source)
        verify_unchanged(source, before)
    kind = _kind(settings, is_chat)
    listed = RecordSet(source.name, kind, records, len(rows), 0, ())
    make = _prompts if settings.method == "grpo" else _pairs
    return make(settings, tokenizer, listed, [r for _, r in made], sha256, chat)


def _is_conversation(row: Row, settings: Settings) -> bool:
    if conversation_field(row.fields) is not None:
        return True
    values = (row.fields.get(name) for name in _TEXT_OR_TURNS[settings.method])
    return any(isinstance(value, (list, dict)) for value in values)


def _kind(settings: Settings, is_chat: bool) -> RecordKind:
    if is_chat:
        return "messages"
    return "prompt-completion" if settings.method == "dpo" else "text"


class _Builder:
    """Makes records and TRL's rows from rows as they were read."""

    def __init__(
        self, settings: Settings, tokenizer: Any, chat: ChatFormat | None, problems: Problems
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._chat = chat
        self._problems = problems

    def row(self, row: Row) -> tuple[Record, dict[str, Any]] | None:
        """Return the record and the fields, or None where something is wrong with the row."""
        kinds = {True: "a conversation", False: "text"}
        method = self._settings.method
        is_chat = _is_conversation(row, self._settings)
        try:
            if is_chat is not (self._chat is not None):
                raise RowError(
                    f"this row is {kinds[is_chat]}, the first row {kinds[not is_chat]}, and a run "
                    "learns from one of the two",
                    "give each its own file",
                )
            return self._pair(row) if method == "dpo" else self._prompt(row)
        except RowError as problem:
            self._problems.add(row.where, str(problem), problem.hint or _HINTS[method])
            return None

    def _pair(self, row: Row) -> tuple[Record, dict[str, Any]]:
        if self._chat is not None:
            better, worse = (
                Record(None, turns[-1].content, turns, None, row.where)
                for turns in read_conversations(row.fields)
            )
        else:
            prompt, *answers = (_text(row, name) for name in ("prompt", "chosen", "rejected"))
            better, worse = (Record(prompt, text, None, None, row.where) for text in answers)
        if better.completion == worse.completion:
            raise RowError("chosen and rejected are the same text, so there is nothing to prefer")
        return better, {"rejected": worse}

    def _prompt(self, row: Row) -> tuple[Record, dict[str, Any]]:
        if self._chat is not None:
            text = self._chat.render_prompt(_conversation(row.fields))
        else:
            text = render_prompt(_text(row, "prompt"))
        taken = sorted(_RESERVED & row.fields.keys())
        if taken:
            raise RowError(f"the field {taken[0]!r} has a name that grpo uses itself: rename it")
        verify_embedded(self._tokenizer, text)
        settings = self._settings
        room = settings.max_length - settings.max_completion_length
        tokens = len(encode_prompt(self._tokenizer, text))
        if tokens > room:
            raise RowError(
                f"its prompt has {tokens} tokens, and max_length {settings.max_length} less "
                f"max_completion_length {settings.max_completion_length} leaves {room}"
            )
        fields = {name: value for name, value in row.fields.items() if name != "prompt"}
        return Record(None, text, None, None, row.where), {"prompt": text, **fields}


def _text(row: Row, name: str) -> str:
    if name not in row.fields:
        raise RowError(f"the field {name!r} is missing")
    value = row.fields[name]
    if not isinstance(value, str):
        raise RowError(f"{name!r} must be text, not {type_name(value)}")
    if not value.strip():
        raise RowError(f"{name!r} is blank")
    return check_text(value, name)


def _conversation(fields: dict[str, Any]) -> Sequence[Message]:
    """Return the messages before the answer; one at the end is what the row's author answered."""
    name = conversation_field(fields) or "prompt"
    messages = read_turns(fields[name], name)
    verify_turns(messages)
    if messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise RowError(f"{name!r} must end with the user's, which the model is to answer")
    return messages


def _prompts(
    settings: Settings,
    tokenizer: Any,
    records: RecordSet,
    rows: Sequence[dict[str, Any]],
    sha256: str,
    chat: ChatFormat | None,
) -> MethodData:
    train = tokenize_records(records.records, tokenizer, settings)
    # A prompt is read, not learnt: what is learnt, the model writes.
    train.counts = replace(train.counts, supervised_tokens=0)
    lengths = tuple(
        len(encode_prompt(tokenizer, row["prompt"])) + settings.max_completion_length
        for row in rows
    )
    reason = (
        "rows are prompts: the model writes the answers; nothing is held out, the reward is "
        "measured on the training prompts themselves"
    )
    report = _report(settings, records, train, sha256, reason, chat)
    return MethodData(train, None, records.kind, False, report, tuple(rows), lengths)


def _pairs(
    settings: Settings,
    tokenizer: Any,
    records: RecordSet,
    rows: Sequence[dict[str, Any]],
    sha256: str,
    chat: ChatFormat | None,
) -> MethodData:
    chosen = tokenize_records(records.records, tokenizer, settings)
    rejected = tokenize_records([row["rejected"] for row in rows], tokenizer, settings)
    by_source = {record.source: index for index, record in enumerate(rejected.records)}
    kept = [i for i, record in enumerate(chosen.records) if record.source in by_source]
    train = chosen.subset(kept)
    pairs, lengths = [], []
    for index, record in zip(kept, train.records, strict=True):
        other = rejected[by_source[record.source]]
        pairs.append(_pair_of(chosen[index], other))
        lengths.append(max(len(chosen[index]["input_ids"]), len(other["input_ids"])))
    # A pair is repeated where both of its answers are: one chosen answer may have many worse ones.
    distinct = {(chosen.keys[i], rejected.keys[by_source[chosen.source_of(i)]]) for i in kept}
    chosen.counts = replace(chosen.counts, duplicates=len(kept) - len(distinct))
    train.counts = replace(train.counts, duplicates=len(kept) - len(distinct))
    lost = replace(chosen.counts, rows=len(kept), dropped=len(records.records) - len(kept))
    verify_dropped(lost, 0, settings, records.name)
    reason = "rows are pairs of a chosen and a rejected answer; nothing is held out"
    report = _report(settings, records, train, sha256, reason, chat, chosen)
    return MethodData(train, None, records.kind, False, report, tuple(pairs), tuple(lengths))


def _pair_of(chosen: dict[str, list[int]], rejected: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the ids of a pair, cut where the answers begin."""
    starts = [
        next((i for i, label in enumerate(row["labels"]) if label != IGNORED_LABEL), 0)
        for row in (chosen, rejected)
    ]
    return {
        "prompt_ids": chosen["input_ids"][: starts[0]],
        "chosen_ids": chosen["input_ids"][starts[0] :],
        "rejected_ids": rejected["input_ids"][starts[1] :],
    }


def _report(
    settings: Settings,
    records: RecordSet,
    train: TokenizedDataset,
    sha256: str,
    reason: str,
    chat: ChatFormat | None,
    whole: TokenizedDataset | None = None,
) -> DataReport:
    return DataReport(
        training=describe_source(records.facts, whole or train, sha256),
        validation_source=None,
        train_counts=train.counts,
        validation_counts=NO_ROWS,
        num_overlap=0,
        max_length=settings.max_length,
        split_reason=reason,
        chat_reason=chat.reason if chat else None,
    )
