"""Layers of settings, merged into one, in which every value knows where it came from.

A later layer wins. All problems of all layers are found before any is raised, so that a person
fixes a file once and not once a mistake.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from lorafit.config.fields import SettingValue, WrongValueError, check_value, parse_text
from lorafit.config.names import canonical_name, is_misspelt, unknown_name
from lorafit.config.rules import find_conflicts, find_warnings
from lorafit.config.schema import Settings, is_preset_setting
from lorafit.errors import ConfigError, ExitCode, Problem
from lorafit.text import escape_control, excerpt, shell_word

LayerKind = Literal["default", "preset", "hardware", "file", "env", "group", "override", "flag"]
EXPLICIT_KINDS = frozenset({"file", "env", "group", "override", "flag"})
"""Layers in which a person asked for a value, rather than a preset or a default."""
COMMAND_LINE_KINDS = frozenset({"env", "override", "flag"})
"""Layers whose problems are usage errors (exit code 2); their values are text."""
_SHIPPED_KINDS = frozenset({"preset", "hardware", "group"})


class Given(NamedTuple):
    """A value as it was given, and where: `mine.yaml:7` or `flag --lora-r`."""

    value: object
    where: str


@dataclass(frozen=True)
class Layer:
    """Settings from one place, under the names and with the values that stand there."""

    origin: str
    """What the place is called: `preset balanced`, `hardware row a10g`, `mine.yaml`."""
    kind: LayerKind
    values: Mapping[str, Given]
    problems: tuple[Problem, ...] = ()
    """What was already wrong when the layer was read, to be raised with all the rest."""
    warnings: tuple[str, ...] = ()
    """What is allowed in the layer and has no effect."""


@dataclass(frozen=True)
class Origin:
    """Where a setting's value came from."""

    kind: LayerKind
    text: str

    def __str__(self) -> str:
        return self.text


DEFAULT_ORIGIN = Origin("default", "default")


class Setting(NamedTuple):
    """A validated value and its origin."""

    value: SettingValue
    origin: Origin


@dataclass(frozen=True)
class RowChoice:
    """The hardware row that a preset applies to a device, and why."""

    key: str
    """The row's key in the preset: a catalog name, or `default`."""
    values: Mapping[str, SettingValue]
    reason: str
    layer: Layer
    """The same values with the lines that they come from."""
    leaves_micro_batch: bool = False
    """Whether the row itself names no micro-batch: the one here is only safe."""


@dataclass(frozen=True)
class Resolved:
    """Every setting of a run with its origin, and the warnings that the values deserve."""

    settings: Settings
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...] = ()
    preset: str | None = None
    row: RowChoice | None = field(default=None)
    """The preset's hardware row that was used, with the reason; None without a preset."""
    zero_stage: int | None = None
    """Stage of DeepSpeed's ZeRO that `accelerate launch` was configured for; None: it was not."""

    def is_explicit(self, name: str) -> bool:
        """Return whether a person asked for this value: in a file, variable, override or flag."""
        return self.origins[name].kind in EXPLICIT_KINDS


def resolve_layers(layers: Sequence[Layer]) -> Resolved:
    """Merge `layers` over the schema's defaults; the last layer that gives a setting wins.

    Raises:
        ConfigError: any layer has an unknown name, a wrong value or a setting given twice, or the
            merged settings contradict each other. Exit code 2 when every problem comes from the
            command line or the environment, 3 otherwise.
    """
    found = _Problems()
    merged: dict[str, Setting] = {}
    for layer in layers:
        for problem in layer.problems:
            found.add(problem, layer.kind)
        merged.update(_validate_layer(layer, found))
    found.raise_any()
    settings = _build({name: setting.value for name, setting in merged.items()})
    origins = {
        name: merged[name].origin if name in merged else DEFAULT_ORIGIN
        for name in Settings.model_fields
    }
    resolved = Resolved(settings, origins)
    for conflict in find_conflicts(settings, resolved.is_explicit):
        kinds = [origins[name].kind for name in conflict.settings]
        where = " and ".join(_place(name, origins[name]) for name in conflict.settings)
        kind = next((kind for kind in kinds if kind in COMMAND_LINE_KINDS), kinds[0])
        found.add(Problem(where, conflict.message, conflict.hint), kind)
    found.raise_any()
    # A config group was asked for by name; its values are shipped, and not to be warned about.
    warnings = find_warnings(
        settings, lambda name: resolved.is_explicit(name) and origins[name].kind != "group"
    )
    return replace(
        resolved,
        warnings=(
            *(text for layer in layers for text in layer.warnings),
            *(f"{_place(w.settings[0], origins[w.settings[0]])}: {w.message}" for w in warnings),
        ),
    )


def validate_values(layer: Layer) -> tuple[dict[str, Setting], list[Problem]]:
    """Return a layer's settings under their schema names, and what is wrong with the others."""
    found = _Problems()
    return _validate_layer(layer, found), found.problems


class _Problems:
    """Problems as they are found, and whether all of them are the command line's."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._only_command_line = True

    def add(self, problem: Problem, kind: LayerKind) -> None:
        self.problems.append(problem)
        self._only_command_line &= kind in COMMAND_LINE_KINDS

    def raise_any(self) -> None:
        if self.problems:
            code = ExitCode.USAGE if self._only_command_line else ExitCode.BAD_INPUT
            raise ConfigError(self.problems, exit_code=code)


_FOREIGN_FROM = 3
"""Names in a file, like none that there is, from which on it looks like that of another tool."""


def _foreign_hint(layer: Layer) -> str | None:
    """Return the hint for a file whose strange names must be another tool's."""
    unknown = [
        where
        for raw, (_, where) in layer.values.items()
        if canonical_name(raw) is None and not is_misspelt(raw)
    ]
    if layer.kind != "file" or len(unknown) < _FOREIGN_FROM:
        return None
    file = unknown[0].rpartition(":")[0] or unknown[0]
    return f"a file of another tool? type: lorafit config convert {shell_word(file)}"


def _validate_layer(layer: Layer, found: _Problems) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    written: dict[str, tuple[str, str]] = {}
    foreign, is_foreign_said = _foreign_hint(layer), False
    for raw, (value, where) in layer.values.items():
        name = canonical_name(raw)
        shown = f"{where}: {excerpt(raw, 60)}" if layer.kind not in COMMAND_LINE_KINDS else where
        if name is None:
            message, hint = unknown_name(raw)
            # One hint tells what to do with the whole file; one a name would bury it.
            given = hint if foreign is None else "" if is_foreign_said else foreign
            is_foreign_said = True
            found.add(Problem(shown, message, given or None), layer.kind)
            continue
        if name in written:
            other, other_where = written[name]
            message = f"{name} is given twice: as {other} ({other_where}) and as {raw} ({where})"
            found.add(Problem(shown, message, f"keep one of {other} and {raw}"), layer.kind)
            continue
        written[name] = (raw, where)
        try:
            settings[name] = Setting(_validate(layer, name, value), _origin(layer, where))
        except WrongValueError as error:
            found.add(Problem(shown, error.message, error.hint), layer.kind)
    return settings


def _validate(layer: Layer, name: str, value: object) -> SettingValue:
    if layer.kind in _SHIPPED_KINDS and not is_preset_setting(name):
        raise WrongValueError(
            f"{name} belongs to a machine or a person, and is not allowed in presets",
            f"give it as --{name.replace('_', '-')}, or in a file for --config",
        )
    if layer.kind in COMMAND_LINE_KINDS and isinstance(value, str):
        return parse_text(name, value)
    return check_value(name, value)


def _origin(layer: Layer, where: str) -> Origin:
    text = f"{layer.origin} ({where})" if layer.kind in _SHIPPED_KINDS else where
    return Origin(layer.kind, text)


def _place(name: str, origin: Origin) -> str:
    return f"{name} ({origin.text})"


def _build(values: Mapping[str, SettingValue]) -> Settings:
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:  # a constraint of the schema that fields.py cannot read
        problems = [
            Problem(".".join(str(part) for part in issue["loc"]) or "settings", issue["msg"])
            for issue in error.errors()
        ]
        raise ConfigError(problems) from None


def flags_layer(flags: Mapping[str, str | bool]) -> Layer:
    """Return the layer of command-line flags, keyed by setting name."""
    values: dict[str, Given] = {}
    for name, value in flags.items():
        switch = f"--no-{name}" if value is False else f"--{name}"
        values[name] = Given(value, f"flag {switch.replace('_', '-')}")
    return Layer("command line", "flag", values)


def overrides_layer(overrides: Iterable[str]) -> Layer:
    """Return the layer of `key=value` arguments."""
    values: dict[str, Given] = {}
    problems = []
    for text in overrides:
        raw, equals, value = text.partition("=")
        key = raw.strip().replace("-", "_")
        where = f"override {escape_control(key)[:60]}"
        if not equals or not key:
            message = f"{excerpt(text, 60)!r} is not an override"
            problems.append(Problem("argument", message, _meant_by(text)))
        elif key in values:
            message = "it is given twice, and which value was meant cannot be known"
            problems.append(Problem(where, message, f"keep one {escape_control(key)[:60]}=…"))
        else:
            values[key] = Given(_home(value.strip()), where)
    return Layer("key=value", "override", values, tuple(problems))


def _meant_by(text: str) -> str:
    """Return the hint for an argument without `=`: most often a file whose flag was left out."""
    suffix = Path(text).suffix.lower()
    if suffix in (".yaml", ".yml", ".toml"):
        return f"settings are named by --config: --config {shell_word(text)}"
    if suffix in (".jsonl", ".json", ".csv", ".parquet"):
        return f"rows are named by --data: --data {shell_word(text)}"
    return "write key=value: learning_rate=1e-4"


def _home(value: str) -> str:
    # A shell expands ~ at the beginning of a word only, not in checkpoint_dir=~/runs.
    return str(Path(value).expanduser()) if value.startswith("~/") else value


ENV_PREFIX = "LORAFIT_"
RESERVED_VARIABLES = frozenset(
    {
        "LORAFIT_CACHE_DIR",  # where the demo's model and tokenized data are kept
        "LORAFIT_FAULT",  # fault injection, for tests
        "LORAFIT_LAUNCHER",  # set for the processes that `train --num-processes` starts
        "LORAFIT_TRACEBACK",  # print tracebacks of bugs
        "LORAFIT_COMPLETE",  # shell completion
    }
)
"""Variables that are not settings."""


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Return the layer of `LORAFIT_*` variables: LORAFIT_LEARNING_RATE is learning_rate."""
    values = {
        name.removeprefix(ENV_PREFIX).lower(): Given(value, f"environment variable {name}")
        for name, value in sorted(environ.items())
        if name.startswith(ENV_PREFIX) and name not in RESERVED_VARIABLES
    }
    return Layer("environment", "env", values)
