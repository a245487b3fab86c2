"""What becomes of a key of another tool's configuration, and rules that say so."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lorafit.config.document import Plain
from lorafit.config.fields import field_rule


class Carried(NamedTuple):
    """The key is a setting of lorafit."""

    setting: str
    value: Plain


class Kept(NamedTuple):
    """The key asks for what lorafit does anyway."""

    reason: str


class Lost(NamedTuple):
    """The key asks for something that lorafit does not do."""

    reason: str
    stops_run: bool = False
    """The run would be another one without it: a warning is not enough."""


Outcome = Carried | Kept | Lost
Rule = Callable[[Plain], Outcome]

NO_SETTING = "lorafit has no such setting"


def becomes(setting: str) -> Rule:
    """Return the rule of a key that is a setting under another name; null says nothing."""
    return lambda value: Kept("it is not set") if value is None else Carried(setting, value)


def becomes_one_of(setting: str, values: Mapping[str, Plain]) -> Rule:
    """Return the rule of a key whose values have other spellings here."""

    def rule(value: Plain) -> Outcome:
        if value is None:
            return Kept("it is not set")
        spelled = str(value).lower() if isinstance(value, bool) else str(value)
        if spelled in values:
            return Carried(setting, values[spelled])
        known = [str(choice) for choice in field_rule(setting).choices]
        return Lost(f"{setting} is one of {', '.join(known)}", stops_run=True)

    return rule


def switches(setting: str, value: Plain, *, off: str) -> Rule:
    """Return the rule of a switch that, when on, gives a setting a value."""

    def rule(given: Plain) -> Outcome:
        if given in (None, False, "false"):
            return Kept(off)
        return Carried(setting, value)

    return rule


def anyway(*values: Plain, reason: str, otherwise: str = NO_SETTING, stops: bool = False) -> Rule:
    """Return the rule of a key that may only say what lorafit does anyway."""

    def rule(value: Plain) -> Outcome:
        is_known = any(value == known and type(value) is type(known) for known in values)
        return Kept(reason) if value is None or is_known else Lost(otherwise, stops)

    return rule


def unless_set(reason: str, *, stops: bool = False) -> Rule:
    """Return the rule of a key that means nothing here while it is off, empty or absent."""

    def rule(value: Plain) -> Outcome:
        says_nothing = is_off(value) or value in ("none", "no", "false")
        return Kept("it is off") if says_nothing else Lost(reason, stops)

    return rule


def ignored(reason: str) -> Rule:
    """Return the rule of a key that cannot matter here, whatever its value."""
    return lambda _: Kept(reason)


def is_off(value: Plain) -> bool:
    """Return whether a value says nothing: null, false, or an empty text, list or mapping."""
    return value is None or value is False or value in ("", [], {})
