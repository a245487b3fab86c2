"""A configuration file as a tree in which every value knows its line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lorafit.errors import ConfigError, Problem
from lorafit.text import escape_control

MAX_BYTES = 1024 * 1024
"""A configuration file is a page of text; 1 MiB is a mistake, or an attack."""
MAX_DEPTH = 20
"""Levels of nesting: far more than any configuration needs, far less than Python's stack."""

Scalar = str | int | float | bool | None
Plain = Scalar | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True)
class Node:
    """A value of a file and the 1-based line it stands on (for a mapping's entry: its key's)."""

    value: "Scalar | list[Node] | dict[str, Node]"
    line: int

    def plain(self) -> Plain:
        """Return the value as Python's own lists, dictionaries and scalars."""
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return self.value


@dataclass(frozen=True)
class Document:
    """A parsed configuration file: a mapping at the top."""

    source: str
    """The file as a person would name it, such as `mine.yaml`; control characters escaped."""
    entries: dict[str, Node]

    def where(self, node: Node) -> str:
        """Return `file:line` of a value."""
        return f"{self.source}:{node.line}"

    def flat(self) -> Iterator[tuple[str, Node]]:
        """Yield each value that is not a mapping under its dotted key, in file order."""
        yield from _flatten("", self.entries)


def _flatten(prefix: str, entries: dict[str, Node]) -> Iterator[tuple[str, Node]]:
    for key, node in entries.items():
        if isinstance(node.value, dict) and node.value:
            yield from _flatten(f"{prefix}{key}.", node.value)
        else:
            yield f"{prefix}{key}", node


class Source(NamedTuple):
    """The text of a file under the name it is reported by."""

    name: str
    text: str


class FileError(Exception):
    """One thing wrong with a file's text, at a place in it; becomes a `ConfigError`."""

    def __init__(
        self, message: str, *, line: int, column: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column
        self.hint = hint

    def to_config_error(self, source: Source) -> ConfigError:
        """Return the error with file:line:column and, for a syntax error, the line itself."""
        where = f"{source.name}:{self.line}"
        message = self.message
        if self.column is not None:
            where = f"{where}:{self.column}"
            message = f"{message}\n{show_line(source.text, self.line, self.column)}"
        return ConfigError([Problem(where, message, self.hint)])


def show_line(text: str, line: int, column: int, width: int = 80) -> str:
    """Return a line of `text`, escaped, with a caret under the 1-based `column`."""
    lines = text.split("\n")
    shown = lines[line - 1].rstrip("\r") if line <= len(lines) else ""
    start = max(0, column - 1 - width // 2)
    before = escape_control(shown[start : column - 1])
    return f"  {before}{escape_control(shown[column - 1 : start + width])}\n  {' ' * len(before)}^"


def duplicate(key: str, first_line: int, line: int) -> FileError:
    """Return the error for a key that stands twice in one mapping."""
    return FileError(
        f"{escape_control(key)[:80]} is given twice, on line {first_line} and on line {line}; "
        "which of the two was meant cannot be known",
        line=line,
        hint=f"remove line {first_line} or line {line}",
    )


def too_deep(line: int) -> FileError:
    """Return the error for a file that nests more than `MAX_DEPTH` levels."""
    return FileError(
        f"more than {MAX_DEPTH} levels of nesting; settings need two",
        line=line,
        hint="write settings flat, one `name: value` a line",
    )
