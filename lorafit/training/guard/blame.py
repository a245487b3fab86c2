"""Which rows of the data a step that went wrong consists of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from lorafit.data.micro_batches import Row, StepRows
from lorafit.text import excerpt

_MAX_NAMED = 5


class SourcedRows(Protocol):
    """Tokenized rows that know where they came from."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row."""

    def source_of(self, index: int) -> str:
        """Return where a row came from, such as `my.jsonl:12`."""

    def __getitem__(self, index: int) -> Mapping[str, Sequence[int]]:
        """Return `input_ids` and `labels` of a row."""


def row_source(rows: SourcedRows, row: Row) -> str | None:
    """Return where a row came from, such as `my.jsonl:12`; None if it is not among `rows`.

    Rows are found by their content: asked once, when something has gone wrong.
    """
    length = len(row["input_ids"])
    for index, other in enumerate(rows.lengths):
        if other == length and list(rows[index]["input_ids"]) == list(row["input_ids"]):
            return rows.source_of(index)
    return None


def name_rows(rows: Iterable[Row], source: Callable[[Row], str | None]) -> str:
    """Return some rows by name, the first few and the number of the others."""
    names = [excerpt(source(row) or "a row", 60) for row in rows]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def longest_row(step: StepRows, source: Callable[[Row], str | None]) -> str | None:
    """Return the longest row of a step, with its length."""
    rows = [row for unit in step.units for row in unit]
    if not rows:
        return None
    longest = max(rows, key=lambda row: len(row["input_ids"]))
    name = excerpt(source(longest) or "a row", 60)
    return f"{name} with {len(longest['input_ids'])} tokens"
