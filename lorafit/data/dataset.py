"""Tokenized rows as a map-style data set, with the counts that must not be lost.

The rows lie one after the other in a few arrays, the columns: in memory, or mapped from files, see
`lorafit.data.store`. Which of the two it is makes no difference to what trains on them.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from lorafit.data.columns import IGNORED_LABEL as IGNORED_LABEL
from lorafit.data.columns import KEY_BYTES, Tally
from lorafit.data.records import Record

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[Any]]

_KEYS_AT_ONCE = 4096


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


NO_ROWS = TokenCounts(0, 0, 0, 0, 0, 0, 0, None, 0, None)


class Places(Protocol):
    """Where rows came from, and their records."""

    def source_of(self, index: int) -> str:
        """Return where a row came from, such as `train.jsonl:12`."""

    def records_of(self, indices: "Column | None") -> Sequence[Record]:
        """Return the records of some rows, or of all."""


@dataclass(frozen=True)
class RecordsInMemory:
    """The places of rows whose records are held."""

    records: list[Record]

    def source_of(self, index: int) -> str:
        """Return where a row came from."""
        return self.records[index].source

    def records_of(self, indices: "Column | None") -> Sequence[Record]:
        """Return the records of some rows, or of all."""
        return self.records if indices is None else [self.records[i] for i in indices.tolist()]


class TokenizedDataset:
    """Rows of token ids and labels; a map-style data set for a torch DataLoader.

    `dataset[i]` is `{"input_ids": list[int], "labels": list[int]}`, both of the row's own length.
    """

    def __init__(
        self,
        columns: "Mapping[str, Column]",
        tally: Tally,
        places: Places,
        indices: "Column | None" = None,
    ) -> None:
        """Stand for the rows in `columns`, or for some of them, by index."""
        self._columns = columns
        self._tally = tally
        self._places = places
        self._indices = indices
        self.full_lengths = Counter({} if indices is not None else tally.full_lengths)
        """Rows of each length before cutting and dropping, for statistics; only of all rows."""

    def __len__(self) -> int:
        return len(self._columns["ends"] if self._indices is None else self._indices)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        import numpy as np

        row = self._row(index)
        ends = self._columns["ends"]
        tokens = self._columns["tokens"][ends[row - 1] if row else 0 : ends[row]]
        is_learnt = tokens >= 0
        return {
            "input_ids": np.where(is_learnt, tokens, ~tokens).tolist(),
            "labels": np.where(is_learnt, tokens, IGNORED_LABEL).tolist(),
        }

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        return (self[index] for index in range(len(self)))

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return index if self._indices is None else int(self._indices[index])

    def _column(self, name: str) -> "Column":
        column = self._columns[name]
        return column if self._indices is None else column[self._indices]

    @property
    def lengths(self) -> "array[int]":
        """Tokens of each row."""
        import numpy as np

        lengths = np.diff(self._columns["ends"], prepend=0)
        if self._indices is not None:
            lengths = lengths[self._indices]
        return array("i", lengths.astype(np.int32).tobytes())

    @property
    def records(self) -> Sequence[Record]:
        """The record of each row; of rows that are mapped, they are read from the source again."""
        return self._places.records_of(self._indices)

    def source_of(self, index: int) -> str:
        """Return where a row came from, such as `train.jsonl:12`."""
        return self._places.source_of(self._row(index))

    @property
    def is_labelled(self) -> bool:
        """Whether every row of the source that is kept has a label."""
        return self._tally.labelled == self._tally.rows

    @property
    def keys(self) -> "Keys":
        """A digest of each row's tokens and labels: equal rows have equal keys."""
        return Keys(self._columns["keys"], self._indices)

    def subset(self, indices: Iterable[int]) -> "TokenizedDataset":
        """Return a data set of some of the rows, with their own counts of rows and tokens."""
        import numpy as np

        chosen = np.fromiter(indices, np.int64)
        if self._indices is not None:
            chosen = self._indices[chosen]
        return TokenizedDataset(self._columns, self._tally, self._places, chosen)

    @cached_property
    def counts(self) -> TokenCounts:
        """The counts of these rows, and of what was dropped if they are all rows."""
        tally = self._tally if self._indices is None else Tally()
        special = self._column("special") != 0
        first_special = tally.first_dropped_special
        if special.any():
            first = int(special.argmax())
            code = int(self._column("special")[first])
            first_special = f"{self._tally.special_texts[code - 1]} in {self.source_of(first)}"
        return TokenCounts(
            rows=len(self),
            truncated=int(self._column("cut").sum()) + tally.dropped_cut,
            dropped=tally.dropped,
            tokens=sum(self.lengths),
            supervised_tokens=int(self._column("targets").sum()),
            duplicates=len(self) - self.keys.count_distinct(),
            special_text_rows=int(special.sum()) + tally.dropped_special,
            first_special_text=first_special,
            separately_tokenized=tally.separately_tokenized,
            first_dropped=tally.first_dropped,
        )


class Keys(Sequence[bytes]):
    """The keys of rows."""

    def __init__(self, keys: "Column", indices: "Column | None") -> None:
        self._keys = keys.reshape(-1, KEY_BYTES)
        self._indices = indices

    def __len__(self) -> int:
        return len(self._keys if self._indices is None else self._indices)

    def __getitem__(self, index: Any) -> Any:
        """Return one key; slices are not needed."""
        row = index if self._indices is None else self._indices[index]
        return self._keys[row].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self), _KEYS_AT_ONCE):
            part = slice(start, start + _KEYS_AT_ONCE)
            found = self._keys[part if self._indices is None else self._indices[part]].tobytes()
            for at in range(0, len(found), KEY_BYTES):
                yield found[at : at + KEY_BYTES]

    def count_distinct(self) -> int:
        """Return how many different keys there are."""
        import numpy as np

        heads = self._keys[:, :8] if self._indices is None else self._keys[self._indices, :8]
        return count_distinct(np.ascontiguousarray(heads).view(np.uint64))


def count_distinct(heads: "Column | array[int]") -> int:
    """Return how many different digests there are, by the first 8 bytes of each as a number.

    Among 25 million rows, the chance that two different ones share them is 1 in 60,000.
    """
    import numpy as np

    # Sorted by hand: np.unique without counts takes twenty times as long.
    ordered = np.sort(heads, axis=None)
    return len(ordered) and 1 + int(np.count_nonzero(np.diff(ordered)))
