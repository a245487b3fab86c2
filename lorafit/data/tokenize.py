"""Tokens and labels: what the model reads, and which of it the model learns to write.

Rules:

* The loss is on the completion only (`train_on_prompt` adds the prompt); plain text is learnt
  whole; of a conversation, the assistant's turns are learnt.
* Every row ends with the end-of-text token, which is learnt too: without it a model never stops.
  A row that already ends with it gets no second one.
* The boundary between prompt and completion is exact: where the prompt's tokens are not the
  beginning of the whole row's tokens, the parts are tokenized apart and joined, so that the
  model reads in training what it will read when it generates.
* Rows longer than `max_length` are cut on the right, which takes the end of the completion and
  its end-of-text. A row with nothing left to learn is dropped. Both are counted.
* Special tokens written out in the data, such as `<|endoftext|>`, act as these tokens, as they do
  when the model generates; they are counted and warned about.
"""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lorafit.config.schema import Settings
from lorafit.data.chat import ChatFormat, Segment, load_chat_format
from lorafit.data.columns import COLUMNS, Block, RowBuilder, columns_of
from lorafit.data.dataset import RecordsInMemory, TokenCounts, TokenizedDataset
from lorafit.data.encoding import Encoder, verify_embedded
from lorafit.data.problems import Problems
from lorafit.data.records import Record
from lorafit.data.templates import RowError, render_completion, render_prompt
from lorafit.errors import ConfigError, DataError, Problem

_BATCH_ROWS = 512
_BATCH_CHARACTERS = 4 * 1024**2


class RowTokenizer:
    """Turns records into blocks of tokens and labels, by the rules above.

    Raises:
        DataError: the records are conversations, and there is no chat template for them.
        ModelError: the tokenizer has no end-of-text token.
    """

    def __init__(self, tokenizer: Any, settings: Settings, *, is_chat: bool) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self._chat = load_chat_format(settings, tokenizer) if is_chat else None
        self._special = _special_text_pattern(tokenizer)
        self._settings = settings

    @property
    def chat_template(self) -> str | None:
        """The template that writes conversations, where the records are some."""
        return None if self._chat is None else self._chat.template

    def block(self, records: Sequence[Record]) -> Block:
        """Return the rows of some records; those that cannot be rendered are its faults."""
        block = Block()
        numbers, rows = [], []
        for number, record in enumerate(records):
            try:
                segments = segments_of(record, self._chat, self._settings.train_on_prompt)
                for segment in segments:
                    verify_embedded(self._tokenizer, segment.text)
                rows.append(segments)
                numbers.append(number)
            except RowError as error:
                block.faults.append((record.source, str(error)))
        before = self._encoder.num_separate
        for number, (ids, labels) in zip(numbers, self._encoder.encode(rows), strict=True):
            special_text = _find_special_text(self._special, records[number])
            block.add(number, ids, labels, self._settings.max_length, special_text)
        block.num_separate = self._encoder.num_separate - before
        return block


def tokenize_records(
    records: Sequence[Record], tokenizer: Any, settings: Settings
) -> TokenizedDataset:
    """Return `records` as tokens and labels in memory, by the rules above.

    Raises:
        DataError: a conversation cannot be rendered, or there is no chat template for it.
        ModelError: the tokenizer has no end-of-text token.
    """
    tokenize = RowTokenizer(tokenizer, settings, is_chat=_is_chat(records))
    buffers = {name: io.BytesIO() for name in COLUMNS}
    builder = RowBuilder(buffers.__getitem__)
    kept: list[Record] = []
    problems = Problems("the data")
    for batch in batches(records):
        block = tokenize.block(batch)
        for fault in block.faults:
            problems.add(*fault)
        builder.add(block, batch)
        kept += [batch[number] for number in block.kept]
    # Raised after the last row: by then all problems are counted.
    problems.raise_if_any()
    return TokenizedDataset(columns_of(buffers), builder.tally, RecordsInMemory(kept))


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield records in lists of a size that is quick to tokenize and small to hold."""
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += num_characters(record)
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def num_characters(record: Record) -> int:
    """Return how long the text of a record is."""
    if record.messages is not None:
        return sum(len(message.content) for message in record.messages)
    return len(record.prompt or "") + len(record.completion)


def segments_of(record: Record, chat: ChatFormat | None, train_on_prompt: bool) -> list[Segment]:
    """Return the text of a record in pieces that are trained or not.

    Raises:
        RowError: the chat template cannot render the conversation.
    """
    if record.messages is not None:
        assert chat is not None
        segments = chat.segments(record.messages)
        return [Segment(s.text, s.is_trained or train_on_prompt) for s in segments]
    if record.prompt is None:
        return [Segment(record.completion, True)]
    return [
        Segment(render_prompt(record.prompt), train_on_prompt),
        Segment(render_completion(record.prompt, record.completion), True),
    ]


def verify_dropped(counts: TokenCounts, num_empty: int, settings: Settings, name: str) -> None:
    """Check that not too many rows were lost for lack of tokens to learn.

    Raises:
        DataError: no row is left, or the share of blank and dropped rows exceeds `max_dropped`.
    """
    lost = counts.dropped + num_empty
    total = counts.rows + lost
    if counts.rows and lost <= settings.max_dropped * total:
        return
    first = f"; the first dropped row is {counts.first_dropped}" if counts.first_dropped else ""
    message = (
        f"{lost} of {total} rows have nothing to learn ({num_empty} blank, {counts.dropped} whose "
        f"prompt alone fills max_length {settings.max_length}){first}"
    )
    if not counts.rows:
        message += "; no row is left"
    raise DataError(
        message,
        where=name,
        hint="raise --max-length or shorten the prompts; "
        f"--max-dropped (now {settings.max_dropped:g}) is the share that may be lost",
    )


def check_max_length(settings: Settings, config: Any) -> None:
    """Check that `max_length` fits the model's context, by its transformers configuration.

    Raises:
        ConfigError: max_length is larger than the number of positions that the model has.
    """
    text_config = getattr(config, "text_config", None) or config
    limit = getattr(text_config, "max_position_embeddings", None)
    if isinstance(limit, int) and settings.max_length > limit:
        problem = Problem(
            "max_length",
            f"{settings.max_length} is more than the {limit} positions of {settings.model}, "
            "which has never learnt what lies beyond",
            f"--max-length {limit} at most",
        )
        raise ConfigError([problem])


def _is_chat(records: Sequence[Record]) -> bool:
    return bool(records) and records[0].messages is not None


def _special_text_pattern(tokenizer: Any) -> "re.Pattern[str] | None":
    texts = set(tokenizer.all_special_tokens)
    texts |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    return re.compile("|".join(map(re.escape, sorted(texts)))) if texts else None


def _find_special_text(pattern: "re.Pattern[str] | None", record: Record) -> str | None:
    if pattern is None:
        return None
    texts = [record.prompt or "", record.completion]
    texts += [message.content for message in record.messages or ()]
    return next((found.group() for text in texts if (found := pattern.search(text))), None)
