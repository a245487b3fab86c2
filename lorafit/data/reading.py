"""Rows of a data file, one at a time, each with the place it came from.

Every reader yields `Row` objects, notes what is wrong with single rows in a `Problems`, and
raises `DataError` (and nothing else) for what makes the whole file unusable.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.data.lines import ENCODING_HINT, MAX_LINE_BYTES, iterate_lines
from lorafit.data.problems import Problems
from lorafit.data.sources import FileSource, HubSource, readable
from lorafit.data.strict_json import (
    JsonError,
    StrictDecoder,
    excerpt_around,
    iterate_array,
)
from lorafit.errors import DataError
from lorafit.text import excerpt
from lorafit.units import MIB, format_bytes

MAX_JSON_BYTES = 512 * MIB
"""A .json array has to be held as one text; larger data belongs in .jsonl, which is streamed."""
_PARQUET_BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """The fields of one row, and `file:line` (or `file:row N` where there are no lines)."""

    fields: dict[str, Any]
    where: str
    done: float = 0.0
    """Share of the source that has been read with this row, where it is known."""


def place_of(source: FileSource | HubSource, number: int) -> str:
    """Return what a row of this line, or of this number where there are no lines, is called."""
    has_lines = isinstance(source, FileSource) and source.format != "parquet"
    return f"{source.name}:{number}" if has_lines else f"{source.name}:row {number}"


def number_of(place: str) -> int:
    """Return the number in what `place_of` returned."""
    return int(place.replace(" ", ":").rsplit(":", 1)[1])


def iterate_rows(source: FileSource | HubSource, problems: Problems) -> Iterator[Row]:
    """Yield the rows of a file or hub data set, in order.

    Raises:
        DataError: the data as a whole cannot be read.
    """
    if isinstance(source, HubSource):
        from lorafit.data.hub import iterate_hub_rows

        for number, fields in enumerate(iterate_hub_rows(source), start=1):
            yield Row(fields, place_of(source, number))
        return
    readers = {
        "jsonl": _iterate_jsonl,
        "json": _iterate_json,
        "csv": _iterate_csv,
        "tsv": _iterate_csv,
        "parquet": _iterate_parquet,
    }
    yield from readers[source.format](source, problems)


def _iterate_jsonl(source: FileSource, problems: Problems) -> Iterator[Row]:
    decoder = StrictDecoder()
    is_first = True
    size = _size_of(source)
    for line in iterate_lines(source):
        where = place_of(source, line.number)
        if line.fault:
            problems.add(where, line.fault, ENCODING_HINT)
            continue
        if not line.text.strip():
            continue
        try:
            value, noted = decoder.decode(line.text.rstrip("\r\n"))
        except JsonError as problem:
            column = (problem.position or 0) + 1
            hint = _guess_format(line.text, source) if is_first else None
            problems.add(f"{where}:{column}", f"{problem.message}: {problem.shown}", hint)
        else:
            if noted:
                problems.add(where, f"{noted[0]}: {excerpt_around(line.text, 0)}")
            elif isinstance(value, dict):
                yield Row(value, where, line.end / size)
            else:
                hint = _guess_format(line.text, source) if is_first else None
                problems.add(where, _not_an_object(value, line.text), hint)
        is_first = False


def _size_of(source: FileSource) -> int:
    """Return the bytes of a file, at least 1."""
    with readable(source.name):
        return max(1, source.path.stat().st_size)


def _not_an_object(value: Any, text: str) -> str:
    return f"a row is an object {{…}}, this is {type_name(value)}: {excerpt_around(text, 0)}"


def type_name(value: Any) -> str:
    """Return what JSON calls a value, with its article, such as `a number`."""
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", tuple: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _guess_format(first_line: str, source: FileSource) -> str | None:
    """Return a hint if a .jsonl file is really something else, judged by its first line."""
    start = first_line.lstrip()
    json_name, csv_name = source.path.with_suffix(".json"), source.path.with_suffix(".csv")
    if start.startswith("["):
        return f"this looks like a JSON array: rename it to {json_name.name}"
    if start.rstrip() == "{":
        return f"this looks like one JSON document over many lines: rename it to {json_name.name}"
    if start[:1].isalpha() and "," in start:
        return f"this looks like CSV: rename it to {csv_name.name}"
    return None


def _iterate_json(source: FileSource, problems: Problems) -> Iterator[Row]:
    text = _read_json_text(source)
    if not text.strip():
        return
    line, counted_to = 1, 0
    try:
        for value, position, noted in iterate_array(text, StrictDecoder()):
            line += text.count("\n", counted_to, position)
            counted_to = position
            where = place_of(source, line)
            shown = text[position : position + 200]
            if noted:
                problems.add(where, f"{noted[0]}: {excerpt_around(shown, 0)}")
            elif isinstance(value, dict):
                yield Row(value, where, position / len(text))
            else:
                problems.add(where, _not_an_object(value, shown))
    except JsonError as problem:
        at = problem.position or 0
        line = text.count("\n", 0, at) + 1
        column = at - (text.rfind("\n", 0, at) + 1) + 1
        message = f"{problem.message}: {problem.shown}"
        hint = _jsonl_hint(text, source) or problem.hint
        problems.add(f"{source.name}:{line}:{column}", message, hint)


def _read_json_text(source: FileSource) -> str:
    size = _size_of(source)
    if size > MAX_JSON_BYTES:
        raise DataError(
            f"{format_bytes(size)} of JSON in one array; more than {format_bytes(MAX_JSON_BYTES)} "
            "would have to be held in memory at once",
            where=source.name,
            hint=f"write one object a line: jq -c '.[]' FILE > {source.path.stem}.jsonl",
        )
    parts = []
    for line in iterate_lines(source):
        if line.fault:
            where = f"{source.name}:{line.number}"
            raise DataError(line.fault, where=where, hint=ENCODING_HINT)
        parts.append(line.text)
    return "".join(parts)


def _jsonl_hint(text: str, source: FileSource) -> str | None:
    lines = text.lstrip().split("\n", 2)[:2]
    if len(lines) == 2 and all(line.strip()[:1] == "{" for line in lines):
        name = source.path.with_suffix(".jsonl").name
        return f"this looks like one object a line: rename it to {name}"
    return None


def _iterate_csv(source: FileSource, problems: Problems) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _CsvLines(source)
    delimiter = "\t" if source.format == "tsv" else ","
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    size = _size_of(source)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where = place_of(source, start)
            start = reader.line_num + 1
            if header is None:
                header = cells
                _check_header(header, where, source)
            elif cells and len(cells) != len(header):
                problems.add(
                    where,
                    f"{len(cells)} fields, the header has {len(header)}: {excerpt(cells[0], 60)}",
                    'quote fields that hold commas or line breaks: "…"',
                )
            elif cells:
                yield Row(dict(zip(header, cells, strict=True)), where, lines.end / size)
    except csv.Error as error:
        hint = 'quote fields that hold commas or line breaks, and double quotes in them: "a ""b"""'
        problems.add(f"{source.name}:{max(1, reader.line_num)}", f"not CSV: {error}", hint)


class _CsvLines:
    """The lines of a CSV file, and how many bytes have been read with the last of them."""

    def __init__(self, source: FileSource) -> None:
        self._source = source
        self._lines = iterate_lines(source)
        self.end = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        # Unlike in JSONL, one bad line cannot be skipped: a quoted field may span it.
        if line.fault:
            where = place_of(self._source, line.number)
            raise DataError(line.fault, where=where, hint=ENCODING_HINT)
        self.end = line.end
        return line.text


def _check_header(header: list[str], where: str, source: FileSource) -> None:
    shown = excerpt(", ".join(header))
    between, others = ("tabs", ",;|") if source.format == "tsv" else ("commas", "\t;|")
    if len(header) == 1 and any(mark in header[0] for mark in others):
        hint = "save the file with commas between fields, or with tabs as .tsv"
        by_tabs = "\t" in header[0]
        if by_tabs or ("," in header[0] and source.format == "tsv"):
            hint = f"rename it to {source.path.with_suffix('.tsv' if by_tabs else '.csv').name}"
        raise DataError(
            f"the header is one field, so {between} do not separate the fields: {shown}",
            where=where,
            hint=hint,
        )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        message = f"the header names {excerpt(twice, 40)!r} twice: {shown}"
        raise DataError(message, where=where, hint="the first line names each field once")
    if not all(name.strip() for name in header):
        raise DataError(
            f"the header has a field without a name: {shown}",
            where=where,
            hint="the first line names each field",
        )


def _iterate_parquet(source: FileSource, _problems: Problems) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(_checked(source.path)) as file:
            num_rows = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, place_of(source, number), number / num_rows)
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(
            f"not a readable Parquet file: {excerpt(str(error), 160)}",
            where=source.name,
            hint="the file may be cut off: copy or write it again",
        ) from None


def _checked(path: Path) -> str:
    # An absolute path cannot be mistaken for a URI by pyarrow.
    return str(path.absolute())
