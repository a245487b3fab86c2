"""Strict loading of configuration files: YAML, JSON or TOML, by the file's suffix."""

import codecs
import datetime
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from lorafit.config.document import (
    MAX_BYTES,
    MAX_DEPTH,
    Document,
    FileError,
    Node,
    Source,
    too_deep,
)
from lorafit.config.json_reader import read_json
from lorafit.config.yaml_reader import read_yaml
from lorafit.errors import ConfigError, Problem
from lorafit.text import escape_control, excerpt, shell_word
from lorafit.units import format_bytes

SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
_EXAMPLE = "write settings such as `max_length: 1024`, one a line"
_WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def load_document(path: Path, *, name: str | None = None) -> Document:
    """Return the file at `path` as a document; `name` is how messages call it.

    Raises:
        ConfigError: the file is missing, is no regular file, is over 1 MiB, or `parse_document`
            refuses its text.
    """
    label = escape_control(name or str(path))
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        problem = f"the suffix {excerpt(path.suffix)!r} says no format; it must be one of " + (
            ", ".join(SUFFIXES)
        )
        hint = "rename the file, for example to mine.yaml"
        if path.suffix.lower() == ".py":
            hint = f"lorafit config convert {shell_word(path)} --output settings.yaml"
        raise ConfigError([Problem(label, problem, hint)])
    return parse_document(_read_bytes(path, label), label, kind)


def parse_document(data: bytes, name: str, kind: str) -> Document:
    """Return `data` as a document; `kind` is yaml, json or toml.

    Raises:
        ConfigError: the bytes are not UTF-8 text of that kind with a mapping at the top. The
            problem names line and column, or the byte.
    """
    source = Source(escape_control(name), _decode(data, escape_control(name)))
    read = {"yaml": read_yaml, "json": read_json, "toml": _read_toml}[kind]
    try:
        root = read(source.text)
        return Document(source.name, _require_mapping(root))
    except FileError as error:
        raise error.to_config_error(source) from None


def read_text(path: Path) -> str:
    """Return the text of a small file, its line ends made one; for formats read elsewhere.

    Raises:
        ConfigError: the file is missing, is no regular file, is over 1 MiB, or is not UTF-8.
    """
    label = escape_control(str(path))
    return _decode(_read_bytes(path, label), label)


def _require_mapping(root: Node | None) -> dict[str, Node]:
    if root is None or root.value is None:
        raise FileError("the file holds no settings", line=1, hint=_EXAMPLE)
    if isinstance(root.value, dict):
        if not root.value:
            raise FileError("the file holds no settings", line=root.line, hint=_EXAMPLE)
        return root.value
    what = "a list" if isinstance(root.value, list) else f"the value {excerpt(str(root.value))!r}"
    raise FileError(f"the file is {what}, not settings with names", line=root.line, hint=_EXAMPLE)


def _read_bytes(path: Path, label: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ConfigError([Problem(label, f"this is {what}", "name a file with settings")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"the file cannot be read: {reason}"
        raise ConfigError([Problem(label, problem, "check the path")]) from None
    if len(data) > MAX_BYTES:
        size = format_bytes(max(status.st_size, len(data)))
        problem = f"the file has {size}, and settings files may have 1 MiB"
        raise ConfigError([Problem(label, problem, "is this the right file?")])
    return data


def _decode(data: bytes, label: str) -> str:
    for mark in _WIDE_MARKS:
        if data.startswith(mark):
            problem = "the file is not UTF-8: byte 0 starts a UTF-16 or UTF-32 mark"
            raise ConfigError([Problem(label, problem, "save it as UTF-8")])
    body = data.removeprefix(codecs.BOM_UTF8)
    skipped = len(data) - len(body)
    if b"\0" in body:
        offset = body.index(b"\0") + skipped
        problem = f"the file is not text: byte {offset} is zero (binary data, or UTF-16)"
        raise ConfigError([Problem(label, problem, "save it as UTF-8 text")])
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        offset = error.start + skipped
        problem = f"the file is not UTF-8: byte {offset} is 0x{body[error.start]:02x}"
        hint = "save it as UTF-8; it may be Latin-1 now"
        raise ConfigError([Problem(f"{label}:{line}", problem, hint)]) from None
    # One line end for all readers: what they count as a line must be what an editor shows.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_toml(text: str) -> Node | None:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _toml_error(error, text) from None
    except RecursionError:
        raise too_deep(1) from None
    except ValueError as error:  # an integer of thousands of digits, a 13th month
        raise FileError(f"this is not TOML: {error}", line=1) from None
    return _toml_node(values, 1, text.split("\n"), depth=1)


def _toml_error(error: tomllib.TOMLDecodeError, text: str) -> FileError:
    message = str(error)
    # tomllib names the end of the file in words; the place is then the last line.
    line, column = text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if match is not None and match.group(1):
        line, column = int(match.group(1)), int(match.group(2))
    bare = message[: match.start()] if match else message
    return FileError(f"this is not TOML: {bare}", line=line, column=column)


def _toml_node(value: Any, line: int, lines: list[str], depth: int) -> Node:
    if depth > MAX_DEPTH and isinstance(value, (dict, list)):
        raise too_deep(line)
    if isinstance(value, dict):
        entries = {}
        for key, item in value.items():
            entries[key] = _toml_node(item, _toml_line(key, line, lines), lines, depth + 1)
        return Node(entries, line)
    if isinstance(value, list):
        return Node([_toml_node(item, line, lines, depth + 1) for item in value], line)
    if isinstance(value, (datetime.date, datetime.time)):
        return Node(value.isoformat(), line)
    return Node(value, line)


def _toml_line(key: str, start: int, lines: list[str]) -> int:
    """Return the line on which `key` most likely stands: tomllib does not keep positions."""
    name = rf"(?:[\w.-]+\.)?[\"']?{re.escape(key)}[\"']?"
    assignment = re.compile(rf"\s*{name}\s*[=.]")
    header = re.compile(rf"\s*\[+\s*{name}\s*[\].]")
    in_table = True
    for number in range(start, len(lines) + 1):
        text = lines[number - 1]
        # A table's own keys end where the next table begins.
        in_table = in_table and (number == start or not text.lstrip().startswith("["))
        if header.match(text) or (in_table and assignment.match(text)):
            return number
    return start
