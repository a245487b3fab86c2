"""JSON read with the line of every key, which the standard library does not keep.

Strict where `json.loads` is not: duplicate keys, NaN, Infinity, lone surrogates and numbers that
no float can hold are refused. `lorafit.data.strict_json` is as strict for rows, on top of the
standard library's compiled parser: rows come by the million and need no lines for their keys, and a
settings file is a page of text.
"""

import re
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]  # missing from the stubs

from lorafit.config.document import MAX_DEPTH, FileError, Node, Scalar, duplicate, too_deep
from lorafit.config.numbers import read_float, read_int

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORD = re.compile(r"-?[A-Za-z]+")
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


def read_json(text: str) -> Node | None:
    """Return the value in `text`, or None where there is only white space.

    Raises:
        FileError: the text is not JSON, or holds what settings cannot.
    """
    reader = _Reader(text)
    reader.skip_space()
    if reader.at == len(text):
        return None
    node = reader.value(depth=1)
    reader.skip_space()
    if reader.at < len(text):
        raise reader.error("there is more text after the end of the value")
    return node


class _Reader:
    """A cursor in a JSON text; each method reads one construct and moves the cursor past it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._counted = 0
        self._line = 1

    def error(self, message: str, hint: str | None = None) -> FileError:
        before = self.text[: self.at]
        column = self.at - (before.rfind("\n") + 1) + 1
        line = before.count("\n") + 1
        return FileError(f"this is not JSON: {message}", line=line, column=column, hint=hint)

    def line(self) -> int:
        # Counted from the last call on, so that a long file costs one pass in all.
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def value(self, depth: int) -> Node:
        line = self.line()
        first = self.peek()
        if first in ("{", "[") and first:
            if depth > MAX_DEPTH:
                raise too_deep(line)
            return Node(self._object(depth) if first == "{" else self._array(depth), line)
        if first == '"':
            return Node(self._string(), line)
        return Node(self._number_or_word(), line)

    def _object(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        self.at += 1
        self.skip_space()
        while self.peek() != "}":
            if self.peek() != '"':
                hint = "keys stand in double quotes; no comma after the last entry"
                raise self.error("a key in double quotes is due here", hint)
            line = self.line()
            key = self._string()
            if key in entries:
                raise duplicate(key, entries[key].line, line)
            self._expect(":")
            entries[key] = Node(self.value(depth + 1).value, line)
            self._separator("}")
        self.at += 1
        return entries

    def _array(self, depth: int) -> list[Node]:
        items: list[Node] = []
        self.at += 1
        self.skip_space()
        while self.peek() != "]":
            items.append(self.value(depth + 1))
            self._separator("]")
        self.at += 1
        return items

    def _expect(self, char: str) -> None:
        self.skip_space()
        if self.peek() != char:
            raise self.error(f"{char!r} is due here")
        self.at += 1
        self.skip_space()

    def _separator(self, closing: str) -> None:
        self.skip_space()
        if self.peek() == closing:
            return
        if self.peek() != ",":
            raise self.error(f"',' or {closing!r} is due here")
        self.at += 1
        self.skip_space()
        if self.peek() == closing:
            raise self.error(f"a comma before {closing!r}", "remove the comma")

    def _string(self) -> str:
        try:
            value, self.at = scanstring(self.text, self.at + 1, True)
        except JSONDecodeError as failure:
            self.at = failure.pos
            raise self.error(failure.msg) from None
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise self.error("the text before this holds half of a surrogate pair")
        return str(value)

    def _number_or_word(self) -> Scalar:
        if (match := _NUMBER.match(self.text, self.at)) is not None:
            integer, number = read_int(match.group()), read_float(match.group())
            if integer is None and number is None:
                raise self.error("this number is too long, too large or too small")
            self.at = match.end()
            return number if integer is None else integer
        match = _WORD.match(self.text, self.at)
        word = match.group() if match else ""
        if word in _CONSTANTS:
            self.at += len(word)
            return _CONSTANTS[word]
        if word.lstrip("-") in ("NaN", "Infinity"):
            raise self.error(f"{word} is not a number that a setting can have")
        raise self.error("a value is due here", "text stands in double quotes")
