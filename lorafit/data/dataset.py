"""Tokenized rows in memory, as a map-style data set, with the counts that must not be lost."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorafit.data.records import Record

IGNORED_LABEL = -100
"""Label of a token without loss, as torch's cross entropy has it."""


@dataclass(frozen=True)
class TokenCounts:
    """What became of the rows on their way to tokens."""

    rows: int
    """Rows that are kept."""
    truncated: int
    """Rows cut to max_length, dropped ones included."""
    dropped: int
    """Rows without a token left to learn."""
    tokens: int
    supervised_tokens: int
    """Tokens with a loss; the first token of a row is never predicted and does not count."""
    duplicates: int
    """Rows equal, token by token, to an earlier row."""
    special_text_rows: int
    """Rows with a special token, such as `<|endoftext|>`, written out in their text."""
    first_special_text: str | None
    """The first of these and where it is, for the warning."""
    separately_tokenized: int
    """Rows whose parts were tokenized apart to keep the boundary exact."""
    first_dropped: str | None


class TokenizedDataset:
    """Rows of token ids and labels; a map-style data set for a torch DataLoader.

    `dataset[i]` is `{"input_ids": list[int], "labels": list[int]}`, both of the row's own length;
    `records[i]` is the record that row came from, and `full_lengths` holds the token counts of
    all rows before cutting and dropping, for statistics.
    """

    def __init__(
        self,
        rows: Sequence["TokenizedRow"],
        counts: TokenCounts,
        full_lengths: Sequence[int] = (),
    ) -> None:
        self._rows = rows
        self.counts = counts
        self.full_lengths = full_lengths

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._rows[index]
        return {"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()}

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.input_ids) for row in self._rows]

    @property
    def records(self) -> list[Record]:
        """The record of each row."""
        return [row.record for row in self._rows]

    @property
    def keys(self) -> list[bytes]:
        """A digest of each row's tokens and labels: equal rows have equal keys."""
        return [row.key for row in self._rows]

    def subset(self, indices: Iterable[int]) -> "TokenizedDataset":
        """Return a data set of some of the rows, with their own counts of rows and tokens."""
        rows = [self._rows[index] for index in indices]
        return TokenizedDataset(rows, count_rows(rows))


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row: ids and labels of equal length."""

    input_ids: "array[int]"
    labels: "array[int]"
    record: Record
    is_truncated: bool
    special_text: str | None

    @property
    def num_supervised_tokens(self) -> int:
        """Tokens with a loss; a row's first token is predicted from nothing, so it has none."""
        predicted = self.labels[1:]
        return len(predicted) - predicted.count(IGNORED_LABEL)

    @property
    def key(self) -> bytes:
        """Digest of tokens and labels."""
        digest = hashlib.sha256(self.input_ids.tobytes())
        digest.update(self.labels.tobytes())
        return digest.digest()


def count_rows(
    kept: Sequence[TokenizedRow], dropped: Sequence[TokenizedRow] = (), num_separate: int = 0
) -> TokenCounts:
    """Return the counts of rows that were kept and dropped."""
    special = [row for row in (*kept, *dropped) if row.special_text is not None]
    return TokenCounts(
        rows=len(kept),
        truncated=sum(row.is_truncated for row in (*kept, *dropped)),
        dropped=len(dropped),
        tokens=sum(len(row.input_ids) for row in kept),
        supervised_tokens=sum(row.num_supervised_tokens for row in kept),
        duplicates=len(kept) - len({row.key for row in kept}),
        special_text_rows=len(special),
        first_special_text=(
            f"{special[0].special_text} in {special[0].record.source}" if special else None
        ),
        separately_tokenized=num_separate,
        first_dropped=dropped[0].record.source if dropped else None,
    )
