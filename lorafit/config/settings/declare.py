"""What a setting is declared with: its type, default, meaning, range and recommended range."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class SettingsGroup(BaseModel):
    """A group of settings; immutable once validated, and without any others."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Recommended(BaseModel):
    """A range outside of which a value is allowed, but worth a warning that says why."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    below: str
    """What happens below `low`."""
    above: str
    """What happens above `high`."""


def at_most(high: int, above: str) -> Recommended:
    """Return the range of a count of steps that has no lower end worth a word."""
    return Recommended(low=1, high=high, below="", above=above)


def _no_bool(value: Any) -> Any:
    # bool is an int in Python: without this, `lora_r: true` would train rank 1.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be finite")
    return value


Int = Annotated[int, Field(strict=True), BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), BeforeValidator(_finite)]
Text = Annotated[str, Field(min_length=1)]


def setting(
    default: Any,
    description: str,
    *,
    recommended: Recommended | None = None,
    preset: bool = True,
    **constraints: Any,
) -> Any:
    """Declare a setting: its default, meaning and recommended range.

    `preset=False` marks what belongs to a machine or a person and is refused in a preset.
    `constraints` are pydantic's: `ge`, `le` and the like.
    """
    extra: dict[str, Any] = {"preset": preset, "recommended": recommended}
    return Field(default, description=description, json_schema_extra=extra, **constraints)
