"""YAML read from its parser's events: nothing is ever constructed, so no tag can run anything.

PyYAML's loaders follow YAML 1.1, in which `2e-4` is text, `no` is false, `010` is 8, `1:30` is 90
and the last of two equal keys wins. Here plain scalars follow YAML 1.2's core schema, and what a
settings file has no use for (anchors, aliases, merge keys, tags, several documents) is refused.
"""

import re
from collections.abc import Iterator

import yaml

from lorafit.config.document import MAX_DEPTH, FileError, Node, Scalar, duplicate, too_deep
from lorafit.config.numbers import read_float, read_int

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}


def read_yaml(text: str) -> Node | None:
    """Return the one document of `text`, or None where there is none.

    Raises:
        FileError: the text is not YAML, or uses more of YAML than settings need.
    """
    try:
        return _read_stream(text)
    except yaml.reader.ReaderError as error:
        line, column = _position(text, error.position)
        message = f"the character {error.character!r} is not allowed in YAML"
        raise FileError(message, line=line, column=column) from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except yaml.YAMLError as error:
        raise FileError(f"this is not YAML: {error}", line=1) from None
    except (ValueError, OverflowError):
        # PyYAML converts the digits of \\U escapes and of %YAML without looking at their size.
        culprit = re.search(r"\\U|^%YAML", text, re.MULTILINE)
        line, column = _position(text, culprit.start() if culprit else 0)
        message = "this is not YAML: the number after this is out of range"
        raise FileError(message, line=line, column=column) from None


def _read_stream(text: str) -> Node | None:
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    document = None
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if document is not None:
                raise FileError(
                    "a second document starts here; a settings file is one document",
                    line=_line(event),
                    hint="remove the `---` line, or split the file",
                )
            document = _read_value(events, next(events), depth=1)
    return document


def _read_value(events: Iterator[yaml.Event], event: yaml.Event, depth: int) -> Node:
    _refuse_extras(event)
    line = _line(event)
    if isinstance(event, yaml.ScalarEvent):
        return Node(_scalar(event), line)
    if depth > MAX_DEPTH:
        raise too_deep(line)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            items.append(_read_value(events, item, depth + 1))
        return Node(items, line)
    return Node(_read_mapping(events, depth), line)


def _read_mapping(events: Iterator[yaml.Event], depth: int) -> dict[str, Node]:
    entries: dict[str, Node] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        _refuse_extras(event)
        line = _line(event)
        if not isinstance(event, yaml.ScalarEvent):
            raise FileError(
                "a key is the name of a setting, not a list or a mapping",
                line=line,
                hint="write `name: value`",
            )
        _refuse_surrogates(event.value, event)
        if event.value == "<<" and event.implicit[0]:
            raise FileError(
                "merge keys (<<) are not allowed: a value's origin could not be shown",
                line=line,
                hint="write the settings out, or name a base with `preset: NAME`",
            )
        if event.value in entries:
            raise duplicate(event.value, entries[event.value].line, line)
        value = _read_value(events, next(events), depth + 1)
        entries[event.value] = Node(value.value, line)
    return entries


def _refuse_extras(event: yaml.Event) -> None:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise FileError(
            "anchors (&) and aliases (*) are not allowed in settings",
            line=_line(event),
            hint="write the value out; put text that starts with & or * in quotes",
        )
    if getattr(event, "tag", None) is not None:
        raise FileError(
            "tags (!) are not allowed in settings: they could name code to run",
            line=_line(event),
            hint="write the plain value; put text that starts with ! in quotes",
        )


def _scalar(event: yaml.ScalarEvent) -> Scalar:
    text = str(event.value)
    _refuse_surrogates(text, event)
    if not event.implicit[0]:
        return text
    if text in _WORDS:
        return _WORDS[text]
    integer = read_int(text)
    if integer is not None:
        return integer
    number = read_float(text)
    return text if number is None else number


def _refuse_surrogates(text: str, event: yaml.Event) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        message = "the text holds half of a surrogate pair, which is no character"
        raise FileError(message, line=_line(event))


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None  # PyYAML's parser marks every event
    return int(event.start_mark.line) + 1


def _position(text: str, index: int) -> tuple[int, int]:
    before = text[:index]
    return before.count("\n") + 1, index - (before.rfind("\n") + 1) + 1


def _syntax_error(error: yaml.MarkedYAMLError) -> FileError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = error.problem or error.context or "it cannot be read"
    hint = None
    if "\\t" in problem:
        hint = "indent with spaces: YAML does not allow tabs"
    elif problem == "mapping values are not allowed here":
        hint = "put text that holds a colon in quotes, and line up the settings of a level"
    elif error.context and error.context_mark:
        problem = f"{problem} ({error.context} that began on line {error.context_mark.line + 1})"
    return FileError(f"this is not YAML: {problem}", line=line, column=column, hint=hint)
