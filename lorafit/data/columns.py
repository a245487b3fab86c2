"""The columns of tokenized rows, and how they are filled: blocks of rows, appended one by one."""

import hashlib
import io
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from lorafit.data.records import Record

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[Any]]

IGNORED_LABEL = -100
"""Label of a token without loss, as torch's cross entropy has it."""

KEY_BYTES = 32
COLUMNS = {
    "tokens": "i4",  # ids of all rows end to end; one that is not learnt as ~id, below 0
    "ends": "i8",  # of each row: tokens up to its end
    "targets": "i4",  # of each row: tokens with a loss
    "keys": "u1",  # of each row: KEY_BYTES bytes, its key
    "cut": "u1",  # of each row: 1 where it was cut to max_length
    "special": "i2",  # of each row: which special text stands in it, from 1; 0: none
}
"""The columns and numpy's names of their types."""


@dataclass
class Block:
    """Some tokenized rows on their way into columns; small enough to travel between processes."""

    ids: "array[int]" = field(default_factory=lambda: array("i"))
    """Tokens of the kept rows, end to end."""
    labels: "array[int]" = field(default_factory=lambda: array("i"))
    lengths: "array[int]" = field(default_factory=lambda: array("i"))
    targets: "array[int]" = field(default_factory=lambda: array("i"))
    keys: bytearray = field(default_factory=bytearray)
    cut: bytearray = field(default_factory=bytearray)
    special_texts: list[str | None] = field(default_factory=list)
    kept: "array[int]" = field(default_factory=lambda: array("i"))
    """Which of the records that were tokenized they are, counted from 0."""
    full_lengths: "array[int]" = field(default_factory=lambda: array("i"))
    """Tokens of all rows, before they were cut or dropped."""
    dropped: list[tuple[int, bool, str | None]] = field(default_factory=list)
    """Rows that were dropped: which, whether cut, and the special text in it."""
    num_separate: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Where a record could not be rendered, and why."""

    def add(
        self,
        number: int,
        ids: "array[int]",
        labels: "array[int]",
        max_length: int,
        special_text: str | None,
    ) -> None:
        """Take up the row of record `number`, cut to `max_length` tokens."""
        self.full_lengths.append(len(ids))
        is_cut = len(ids) > max_length
        ids, labels = ids[:max_length], labels[:max_length]
        # A row's first token is predicted from nothing, so it has no loss.
        predicted = labels[1:]
        num_targets = len(predicted) - predicted.count(IGNORED_LABEL)
        if not num_targets:
            self.dropped.append((number, is_cut, special_text))
            return
        self.ids.extend(ids)
        self.labels.extend(labels)
        self.lengths.append(len(ids))
        self.targets.append(num_targets)
        self.keys += _row_key(ids, labels)
        self.cut.append(is_cut)
        self.special_texts.append(special_text)
        self.kept.append(number)


def _row_key(ids: "array[int]", labels: "array[int]") -> bytes:
    """Return a digest of tokens and labels: equal rows have equal keys."""
    digest = hashlib.sha256(ids.tobytes())
    digest.update(labels.tobytes())
    return digest.digest()


@dataclass
class Tally:
    """What is known of the rows beside their columns; JSON types, as it is stored with them."""

    rows: int = 0
    tokens: int = 0
    labelled: int = 0
    """Kept rows that have a label."""
    special_texts: list[str] = field(default_factory=list)
    full_lengths: dict[int, int] = field(default_factory=dict)
    """Rows of each length, before cutting and dropping."""
    dropped: int = 0
    dropped_cut: int = 0
    dropped_special: int = 0
    first_dropped: str | None = None
    first_dropped_special: str | None = None
    separately_tokenized: int = 0


class RowBuilder:
    """Appends blocks to columns that `sink` opens, by name; `tally` counts along."""

    def __init__(self, sink: Callable[[str], BinaryIO]) -> None:
        self._columns = {name: sink(name) for name in COLUMNS}
        self._lengths: Counter[int] = Counter()
        self._codes: dict[str, int] = {}
        self._tally = Tally()

    @property
    def rows(self) -> int:
        """Rows that have been appended so far."""
        return self._tally.rows

    @property
    def tally(self) -> Tally:
        """What has been appended so far."""
        self._tally.full_lengths = dict(self._lengths)
        self._tally.special_texts = list(self._codes)
        return self._tally

    def add(self, block: Block, records: Sequence[Record]) -> int:
        """Append the rows of a block, made of `records`; return the bytes that they take."""
        import numpy as np

        ids, labels = (np.frombuffer(part, np.int32) for part in (block.ids, block.labels))
        ends = np.cumsum(np.frombuffer(block.lengths, np.int32), dtype=np.int64)
        columns: dict[str, Any] = {
            "tokens": np.where(labels == IGNORED_LABEL, ~ids, ids),
            "ends": ends + self._tally.tokens,
            "targets": block.targets,
            "keys": block.keys,
            "cut": block.cut,
            "special": array("h", map(self._code, block.special_texts)),
        }
        written = sum(self._columns[name].write(column) for name, column in columns.items())
        self._count(block, records)
        return written

    def _code(self, text: str | None) -> int:
        return 0 if text is None else self._codes.setdefault(text, len(self._codes) + 1)

    def _count(self, block: Block, records: Sequence[Record]) -> None:
        tally = self._tally
        tally.rows += len(block.lengths)
        tally.tokens += len(block.ids)
        tally.labelled += sum(records[number].label is not None for number in block.kept)
        tally.separately_tokenized += block.num_separate
        self._lengths.update(block.full_lengths)
        for number, is_cut, special_text in block.dropped:
            place = records[number].source
            tally.dropped += 1
            tally.dropped_cut += is_cut
            tally.first_dropped = tally.first_dropped or place
            if special_text is not None:
                tally.dropped_special += 1
                tally.first_dropped_special = (
                    tally.first_dropped_special or f"{special_text} in {place}"
                )


def columns_of(buffers: Mapping[str, io.BytesIO]) -> "dict[str, Column]":
    """Return the columns that were appended in memory."""
    import numpy as np

    return {
        name: np.frombuffer(buffer.getbuffer(), np.dtype(COLUMNS[name]))
        for name, buffer in buffers.items()
    }
