"""Lines of a text file, decoded strictly and one at a time, so that memory stays bounded."""

from collections.abc import Iterator
from dataclasses import dataclass

from lorafit.data.sources import FileSource, readable
from lorafit.errors import DataError

MAX_LINE_BYTES = 16 * 1024**2
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One line with its number, counted from 1; `fault` says why it has no text.

    `end` is the number of bytes of the file up to and including it.
    """

    number: int
    text: str
    fault: str | None = None
    end: int = 0


def iterate_lines(source: FileSource) -> Iterator[Line]:
    r"""Yield the lines of a UTF-8 file, ended by `\n` alone: U+2028 is text, not a line end.

    A byte-order mark at the start is skipped. A line that is not UTF-8 comes with a `fault`
    that names the byte offset in the file.

    Raises:
        DataError: a line is longer than 16 MiB, or the file cannot be read.
    """
    offset = 0
    number = 0
    with readable(source.name), source.path.open("rb") as file:
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(
                    "the line is longer than 16 MiB, so this is hardly one row of text",
                    where=f"{source.name}:{number}",
                    hint="write one row a line",
                )
            yield _decode(raw, number, offset)
            offset += len(raw)


def _decode(raw: bytes, number: int, offset: int) -> Line:
    skipped = len(_BOM) if offset == 0 and raw.startswith(_BOM) else 0
    end = offset + len(raw)
    try:
        return Line(number, raw[skipped:].decode("utf-8"), end=end)
    except UnicodeDecodeError as error:
        at = offset + skipped + error.start
        byte = raw[skipped + error.start]
        return Line(number, "", f"not UTF-8: byte 0x{byte:02x} at offset {at} of the file", end)


ENCODING_HINT = "convert the file, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW"
