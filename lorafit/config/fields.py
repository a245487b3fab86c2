"""What each setting accepts, read off the schema, and the checks that say it in plain words."""

import functools
import math
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types

from lorafit.config.numbers import read_float, read_int, why_not_a_number
from lorafit.config.schema import Settings
from lorafit.text import excerpt, holds_secret, is_unicode, nearest

FieldKind = Literal["integer", "number", "boolean", "text", "choice", "list"]
SettingValue = str | int | float | bool | tuple[str, ...] | None


class WrongValueError(Exception):
    """A value that a setting cannot have: what is wrong, and what to write instead."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class FieldRule:
    """The type and bounds of one setting."""

    name: str
    kind: FieldKind
    optional: bool
    """Whether it may be none."""
    choices: tuple[str, ...] = ()
    low: float | None = None
    low_open: bool = False
    """The lower bound itself is not allowed."""
    high: float | None = None
    high_open: bool = False
    min_items: int = 0

    def describe(self) -> str:
        """Return what is allowed, such as `a whole number from 1 to 256`."""
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "list":
            inner = f" from {', '.join(self.choices)}" if self.choices else ""
            return f"a list of names{inner}"
        if self.kind in ("text", "boolean"):
            return {"text": "text", "boolean": "true or false"}[self.kind]
        noun = "a whole number" if self.kind == "integer" else "a number"
        low = f"{'above' if self.low_open else 'from'} {_number(self.low or 0)}"
        if self.high is None:
            return f"{noun} {low} on"
        return f"{noun} {low} {'to below' if self.high_open else 'to'} {_number(self.high)}"


@functools.cache
def field_rule(name: str) -> FieldRule:
    """Return the rule of a setting of the schema.

    Raises:
        KeyError: the schema has no such setting.
    """
    info = Settings.model_fields[name]
    core, optional = _unwrap(info.annotation)
    rule: dict[str, Any] = {"name": name, "optional": optional}
    if get_origin(core) is tuple:
        item, _ = _unwrap(get_args(core)[0])
        rule["kind"] = "list"
        rule["choices"] = get_args(item) if get_origin(item) is Literal else ()
    elif get_origin(core) is Literal:
        rule.update(kind="choice", choices=get_args(core))
    else:
        kinds = {bool: "boolean", int: "integer", float: "number", str: "text"}
        rule["kind"] = kinds[core]
    for mark in info.metadata:
        if isinstance(mark, annotated_types.Ge):
            rule["low"] = mark.ge
        elif isinstance(mark, annotated_types.Gt):
            rule.update(low=mark.gt, low_open=True)
        elif isinstance(mark, annotated_types.Le):
            rule["high"] = mark.le
        elif isinstance(mark, annotated_types.Lt):
            rule.update(high=mark.lt, high_open=True)
        elif isinstance(mark, annotated_types.MinLen) and rule["kind"] == "list":
            rule["min_items"] = mark.min_length
    return FieldRule(**rule)


def check_value(name: str, value: object) -> SettingValue:
    """Return a value from a file as the setting's type; nothing is converted but int to float.

    Raises:
        WrongValueError: the value is of another type, out of range or no choice.
    """
    rule = field_rule(name)
    if value is None:
        if rule.optional:
            return None
        raise WrongValueError(f"it has no value; it must be {rule.describe()}", _default_hint(name))
    if rule.kind == "list":
        return _check_list(rule, value)
    if rule.kind == "boolean":
        if isinstance(value, bool):
            return value
        raise _wrong_type(rule, value)
    if rule.kind in ("integer", "number"):
        return _check_number(rule, value)
    if isinstance(value, bool) and show_value(value) in rule.choices:
        # A file's true, of a setting that may also be `auto`.
        return show_value(value)
    if isinstance(value, str):
        return _check_text(rule, value)
    raise _wrong_type(rule, value)


def parse_text(name: str, text: str) -> SettingValue:
    """Return text from a flag, override or environment variable as the setting's type.

    Lists are comma separated; `none` is none where the setting may be none.

    Raises:
        WrongValueError: the text spells no value of the type, or one that is not allowed.
    """
    rule = field_rule(name)
    if not text.strip():
        raise WrongValueError(f"the value is empty; it must be {rule.describe()}")
    if rule.optional and text in ("none", "null"):
        return None
    if rule.kind == "list":
        return _check_list(rule, [item.strip() for item in text.split(",")])
    if rule.kind == "boolean" and text in ("true", "false"):
        return text == "true"
    if rule.kind == "integer" and (integer := read_int(text)) is not None:
        return _check_number(rule, integer)
    if rule.kind == "number" and (number := read_float(text)) is not None:
        return _check_number(rule, number)
    if rule.kind in ("integer", "number"):
        shown = excerpt(text, 40)
        raise WrongValueError(f"{shown} is not {rule.describe()}", _number_hint(rule, text))
    if rule.kind == "boolean":
        raise WrongValueError(
            f"{excerpt(text, 40)!r} is neither true nor false", "write true or false"
        )
    return _check_text(rule, text)


def _check_number(rule: FieldRule, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong_type(rule, value)
    if rule.kind == "integer" and isinstance(value, float):
        hint = f"write {int(value)}" if math.isfinite(value) and value == int(value) else None
        raise WrongValueError(f"{_number(value)} must be {rule.describe()}, without a point", hint)
    if isinstance(value, float) and not math.isfinite(value):
        raise WrongValueError(f"{value} is not finite; it must be {rule.describe()}")
    low = -math.inf if rule.low is None else rule.low
    high = math.inf if rule.high is None else rule.high
    outside = value < low or value > high
    on_open_end = (rule.low_open and value == low) or (rule.high_open and value == high)
    if outside or on_open_end:
        raise WrongValueError(
            f"{_number(value)} is not allowed; it must be {rule.describe()}",
            _default_hint(rule.name),
        )
    return float(value) if rule.kind == "number" else value


def _check_text(rule: FieldRule, value: str) -> str:
    if holds_secret(value):
        raise WrongValueError(
            "the value looks like a token or holds a password, which would end up in records",
            "log in with `hf auth login`, or set HF_TOKEN; give the name without it",
        )
    if not value.strip():
        raise WrongValueError(f"the value is empty; it must be {rule.describe()}")
    if "\0" in value:
        raise WrongValueError("the value holds a zero byte, which no name or path can have")
    if not is_unicode(value):
        raise WrongValueError(f"'{excerpt(value)}' is not UTF-8, and could not be recorded")
    if rule.choices and value not in rule.choices:
        guess = nearest(value, rule.choices)
        raise WrongValueError(
            f"{excerpt(value, 40)!r} is not one of {', '.join(rule.choices)}",
            f"did you mean {guess}?" if guess else None,
        )
    return value


def _check_list(rule: FieldRule, value: object) -> tuple[str, ...]:
    example = f"write {rule.name}: [q_proj, k_proj]"
    if not isinstance(value, (list, tuple)):
        raise WrongValueError(f"{_shown(value)} is not {rule.describe()}", example)
    if len(value) < rule.min_items:
        raise WrongValueError(f"the list is empty; it must name at least {rule.min_items}", example)
    items = []
    for item in value:
        if not isinstance(item, str):
            raise WrongValueError(f"the list holds {_shown(item)}, which is not a name", example)
        if not item.strip():
            raise WrongValueError("the list holds an empty name", "is there a comma too many?")
        items.append(_check_text(rule, item))
    return tuple(items)


def _wrong_type(rule: FieldRule, value: object) -> WrongValueError:
    message = f"{_shown(value)} is not {rule.describe()}"
    if isinstance(value, str) and rule.kind in ("integer", "number"):
        if read_float(value) is not None:
            return WrongValueError(message, f"write {value} without quotes")
        return WrongValueError(message, _number_hint(rule, value))
    if isinstance(value, str) and rule.kind == "boolean":
        return WrongValueError(message, "write true or false, without quotes")
    if rule.kind == "text" and isinstance(value, (bool, int, float)):
        return WrongValueError(message, "put the value in quotes")
    return WrongValueError(message, _default_hint(rule.name))


def _number_hint(rule: FieldRule, text: str) -> str:
    if rule.kind == "integer" and (number := read_float(text)) is not None:
        if number == int(number):
            return f"{rule.name}: write {int(number)}"
        return f"{rule.name}: write a number without a point"
    return f"{rule.name}: {excerpt(why_not_a_number(text))}"


def _default_hint(name: str) -> str | None:
    default = Settings.model_fields[name].default
    return None if default in (None, ()) else f"{name}: the default is {show_value(default)}"


def show_value(value: object) -> str:
    """Return a setting's value as a settings file would spell it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(show_value(item) for item in value)}]"
    return _number(value) if isinstance(value, (int, float)) else str(value)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f"the text {excerpt(value, 40)!r}"
    if isinstance(value, dict):
        return "a mapping"
    return excerpt(show_value(value), 60)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value) if abs(value) < 10**25 else "a number of more than 25 digits"
    return f"{value:.12g}"


def _unwrap(annotation: Any) -> tuple[Any, bool]:
    """Return the type inside Annotated and Optional, and whether None is allowed."""
    if get_origin(annotation) is Annotated:
        return _unwrap(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        inner = [part for part in get_args(annotation) if part is not NoneType]
        return _unwrap(inner[0])[0], True
    return annotation, False
