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

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lorafit.config.schema import Settings
from lorafit.data.chat import ChatFormat, Segment, load_chat_format
from lorafit.data.dataset import TokenCounts, TokenizedDataset, TokenizedRow, count_rows
from lorafit.data.encoding import Encoder
from lorafit.data.problems import Problems
from lorafit.data.records import Record
from lorafit.data.templates import RowError, render_completion, render_prompt
from lorafit.errors import ConfigError, DataError, Problem

_BATCH_ROWS = 512


def tokenize_records(
    records: Sequence[Record], tokenizer: Any, settings: Settings
) -> TokenizedDataset:
    """Return `records` as tokens and labels, by the rules above.

    Raises:
        DataError: a conversation cannot be rendered, or there is no chat template for it.
        ModelError: the tokenizer has no end-of-text token.
    """
    encoder = Encoder(tokenizer)
    chat = load_chat_format(settings, tokenizer) if _is_chat(records) else None
    special = _special_text_pattern(tokenizer)
    kept: list[TokenizedRow] = []
    full_lengths: list[int] = []
    dropped: list[TokenizedRow] = []
    for batch in _batches(_iterate_segments(records, chat, settings)):
        encoded = encoder.encode([segments for _, segments in batch])
        for (record, _), (ids, labels) in zip(batch, encoded, strict=True):
            full_lengths.append(len(ids))
            row = TokenizedRow(
                ids[: settings.max_length],
                labels[: settings.max_length],
                record,
                is_truncated=len(ids) > settings.max_length,
                special_text=_find_special_text(special, record),
            )
            (kept if row.num_supervised_tokens else dropped).append(row)
    counts = count_rows(kept, dropped, encoder.num_separate)
    return TokenizedDataset(kept, counts, full_lengths)


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


def _iterate_segments(
    records: Sequence[Record], chat: ChatFormat | None, settings: Settings
) -> Iterator[tuple[Record, list[Segment]]]:
    problems = Problems("the data")
    for record in records:
        try:
            segments = segments_of(record, chat, settings.train_on_prompt)
        except RowError as error:
            problems.add(record.source, str(error))
        else:
            yield record, segments
    # Raised after the last row: by then all problems are counted.
    problems.raise_if_any()


def _batches(
    pairs: Iterable[tuple[Record, list[Segment]]],
) -> Iterator[list[tuple[Record, list[Segment]]]]:
    batch = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == _BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


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
