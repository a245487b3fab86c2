"""JSON as RFC 8259 has it: what Python's parser lets pass in silence is reported here.

For rows, with the speed of the compiled parser; `lorafit.config.json_reader` is for settings, where
every key has to know its line.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from lorafit.text import excerpt

MAX_NUMBER_CHARS = 300
_SPACE = re.compile(r"[ \t\r\n]*")
_EXCERPT_CHARS = 80


class JsonError(Exception):
    """Text that is not strict JSON: what is wrong, and the character position if known."""

    def __init__(
        self, message: str, text: str, position: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.position = position
        self.shown = excerpt_around(text, position or 0)


def excerpt_around(text: str, position: int) -> str:
    """Return at most 80 characters of `text` around `position`, escaped."""
    start = max(0, position - _EXCERPT_CHARS // 2)
    return excerpt(text[start : start + _EXCERPT_CHARS], _EXCERPT_CHARS)


class StrictDecoder:
    """Decodes values and refuses duplicate keys, NaN, Infinity and absurdly long numbers.

    The parser's hooks cannot stop with a position, so they note the problem and parsing goes on:
    that also keeps the place in a long array, where the next row can still be checked.
    """

    def __init__(self) -> None:
        self._noted: list[str] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_int=self._integer,
            parse_float=self._float,
        )

    def decode_at(self, text: str, position: int) -> tuple[Any, int, list[str]]:
        """Return the value that starts at `position`, where it ends, and what was noted in it.

        Raises:
            JsonError: the text is not JSON from here on.
        """
        self._noted = []
        start = skip_space(text, position)
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            raise JsonError(_explain(error, text), text, error.pos) from None
        except RecursionError:
            raise JsonError("values are nested too deeply to be a row", text, start) from None
        return value, end, self._noted

    def decode(self, text: str) -> tuple[Any, list[str]]:
        """Return the one value in `text`, and what was noted in it.

        Raises:
            JsonError: the text is not exactly one JSON value.
        """
        value, end, noted = self.decode_at(text, 0)
        rest = skip_space(text, end)
        if rest < len(text):
            raise JsonError("more text follows the first JSON value of this line", text, rest)
        return value, noted

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._noted.append(
                f"the key {excerpt(twice, 40)!r} appears twice in one object, and which value was "
                "meant cannot be known"
            )
        return fields

    def _constant(self, literal: str) -> float:
        self._noted.append(f"{literal} is not JSON; write null or leave the field out")
        return math.nan

    def _integer(self, literal: str) -> int:
        if len(literal) > MAX_NUMBER_CHARS:
            self._noted.append(f"a number of {len(literal)} digits is not data")
            return 0
        return int(literal)

    def _float(self, literal: str) -> float:
        value = float(literal) if len(literal) <= MAX_NUMBER_CHARS else math.inf
        if not math.isfinite(value):
            self._noted.append(f"the number {excerpt(literal, 20)} is out of range")
        return value


def skip_space(text: str, position: int) -> int:
    """Return the position of the first character at or after `position` that is not space."""
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def iterate_array(text: str, decoder: StrictDecoder) -> Iterator[tuple[Any, int, list[str]]]:
    """Yield value, position and notes for each element of the JSON document's one array.

    The document is an array, or an object that holds one array under `data` or `train`.

    Raises:
        JsonError: the text is not JSON, or holds no such array.
    """
    start = skip_space(text, 0)
    if text[start : start + 1] == "{":
        start = _array_in_object(text, start, decoder)
    elif text[start : start + 1] != "[":
        decoder.decode_at(text, start)
        raise JsonError("a .json data file holds an array of objects", text, start)
    position = skip_space(text, start + 1)
    if text[position : position + 1] == "]":
        return
    is_top_level = text[skip_space(text, 0)] == "["
    while True:
        value, end, noted = decoder.decode_at(text, position)
        yield value, skip_space(text, position), noted
        end = skip_space(text, end)
        if text[end : end + 1] == "]":
            rest = skip_space(text, end + 1)
            if is_top_level and rest < len(text):
                raise JsonError("more text follows the array", text, rest)
            return
        if text[end : end + 1] != ",":
            raise JsonError("a comma or ] is missing after this element", text, end)
        position = skip_space(text, end + 1)
        if text[position : position + 1] == "]":
            raise JsonError("a comma stands before the closing ]", text, position)


def _array_in_object(text: str, start: int, decoder: StrictDecoder) -> int:
    keys = []
    position = skip_space(text, start + 1)
    while text[position : position + 1] == '"':
        key, end, _ = decoder.decode_at(text, position)
        end = skip_space(text, end)
        if text[end : end + 1] != ":":
            raise JsonError("a colon is missing after a key", text, end)
        value_at = skip_space(text, end + 1)
        if key in ("data", "train") and text[value_at : value_at + 1] == "[":
            return value_at
        keys.append(excerpt(key, 20))
        _, end, _ = decoder.decode_at(text, value_at)
        end = skip_space(text, end)
        if text[end : end + 1] != ",":
            break
        position = skip_space(text, end + 1)
    decoder.decode_at(text, start)
    raise JsonError(
        f"the object has no array under `data` or `train`; its keys are {', '.join(keys[:8])}",
        text,
        start,
        "write the rows as one list, [{...}, {...}], or one object a line in a .jsonl file",
    )


def _explain(error: json.JSONDecodeError, text: str) -> str:
    """Return what is most likely wrong, in words for the person who wrote the file."""
    at = text[error.pos : error.pos + 1]
    before = text[: error.pos].rstrip()[-1:]
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        return "not complete JSON: the text ends inside a value"
    if at == "'":
        return "not JSON: strings and keys stand in double quotes, not single ones"
    if (at in ("}", "]") and before == ",") or "railing comma" in error.msg:
        return "not JSON: a comma stands before the closing bracket"
    if "Invalid control character" in error.msg:
        return "not JSON: a control character inside a string; write line breaks as \\n"
    return f"not JSON: {error.msg[0].lower()}{error.msg[1:]}"
