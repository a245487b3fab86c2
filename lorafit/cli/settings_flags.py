"""Every setting of the schema as a command-line flag, generated, so that the two cannot differ."""

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from lorafit.cli.completion import (
    Completer,
    complete_hardware,
    complete_overrides,
    complete_presets,
    setting_completer,
)
from lorafit.config.aliases import ALIASES
from lorafit.config.schema import Settings, setting_group
from lorafit.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from lorafit.config.layers import Layer, Resolved
    from lorafit.hardware.info import DeviceInfo

PRESET_PANEL = "Where settings come from"


@dataclass(frozen=True)
class RunChoices:
    """What the command line says about a run, before anything is validated."""

    preset: str | None = None
    config: Path | None = None
    hardware: str | None = None
    overrides: tuple[str, ...] = ()
    flags: dict[str, str | bool] = field(default_factory=dict)
    gpus: str | None = None
    """What `--gpus` says, where that is why the device is `cuda`."""

    def resolve(self, recorded: "Layer | None" = None) -> "tuple[Resolved, DeviceInfo]":
        """Return the merged settings with their origins, and the device they are for.

        `recorded` are the settings of an earlier run, just above the defaults.

        Raises:
            ConfigError: any value of any layer is wrong; all problems together.
            DeviceError: the requested device is not there.
        """
        from lorafit.config.resolve import resolve_run
        from lorafit.hardware.detect import detect_device, planned_device

        def resolve_for(device: "DeviceInfo") -> "Resolved":
            return resolve_run(
                preset=self.preset,
                config_file=self.config,
                overrides=self.overrides,
                flags=self.flags,
                environ=os.environ,
                device=device,
                recorded=recorded,
            )

        if self.hardware and self.hardware != "auto":
            device = planned_device(self.hardware)
            return resolve_for(device), device
        asked = str(self.flags.get("device", "auto"))
        device = self._detect(asked)
        resolved = resolve_for(device)
        # A device may also be named in a file or variable, which are read only now.
        if resolved.settings.device != asked:
            device = detect_device(resolved.settings.device)
            resolved = resolve_for(device)
        return resolved, device

    def _detect(self, asked: str) -> "DeviceInfo":
        from lorafit.hardware.detect import detect_device

        try:
            return detect_device(asked)
        except DeviceError as missing:
            if self.gpus is None:
                raise
            count = len(self.gpus.split(","))
            raise DeviceError(
                missing.message,
                where=f"--gpus {self.gpus}",
                hint="without --gpus the best device that is here trains; "
                f"--num-processes {count} --device cpu starts {count} on the CPU; "
                f"--num-processes {count} --hardware a10g --dry-run plans for GPUs elsewhere",
            ) from None


def with_settings(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every setting, collected in its `choices: RunChoices` argument."""
    own = [p for n, p in inspect.signature(function).parameters.items() if n != "choices"]
    # A command's own flag goes before a setting of that name: generate samples at a temperature.
    taken = {parameter.name for parameter in own}
    free = [name for name in Settings.model_fields if name not in taken]
    generated = [*_source_parameters(), *map(_flag_parameter, free)]

    @functools.wraps(function)
    def command(**arguments: Any) -> None:
        names = {parameter.name for parameter in own}
        choices = _collect({k: v for k, v in arguments.items() if k not in names})
        function(choices=choices, **{k: v for k, v in arguments.items() if k in names})

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *generated]]
    command.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]  # for typer
    command.__annotations__ = {p.name: p.annotation for p in keyword}
    del command.__wrapped__  # typer would follow it to the plain signature
    return command


def _collect(arguments: dict[str, Any]) -> RunChoices:
    for name in ("preset", "config", "hardware"):
        if arguments[name] == "":
            raise UsageError(f"--{name} is empty", hint=f"give a value, or leave --{name} out")
    config = arguments.pop("config")
    return RunChoices(
        preset=arguments.pop("preset"),
        config=Path(config) if config else None,
        hardware=arguments.pop("hardware"),
        overrides=tuple(arguments.pop("overrides") or ()),
        flags={name: value for name, value in arguments.items() if value is not None},
    )


def _source_parameters() -> list[inspect.Parameter]:
    def option(
        help_text: str, *names: str, metavar: str, completer: Completer | None = None
    ) -> Any:
        return typer.Option(
            *names,
            help=help_text,
            metavar=metavar,
            rich_help_panel=PRESET_PANEL,
            autocompletion=completer,
        )

    text = str | None
    preset = option(
        "Preset to start from; see `lorafit presets list`.",
        "--preset",
        metavar="NAME",
        completer=complete_presets,
    )
    config = option("YAML, JSON or TOML file with settings.", "--config", metavar="FILE")
    hardware = option(
        "Plan for a machine that is not here, such as a10g or m3-18gb.",
        "--hardware",
        metavar="NAME",
        completer=complete_hardware,
    )
    overrides = typer.Argument(
        help="Settings as key=value, such as learning_rate=1e-4.",
        metavar="KEY=VALUE",
        show_default=False,
        autocompletion=complete_overrides,
    )
    return [
        _parameter("overrides", list[str] | None, overrides),
        _parameter("preset", text, preset),
        _parameter("config", text, config),
        _parameter("hardware", text, hardware),
    ]


def _parameter(name: str, kind: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info]
    )


def _flag_parameter(name: str) -> inspect.Parameter:
    field_info = Settings.model_fields[name]
    is_switch = field_info.annotation is bool
    spellings = [name, *(a for a, target in ALIASES.items() if target == name and "." not in a)]
    flags = [f"--{spelling.replace('_', '-')}" for spelling in spellings]
    if is_switch:
        flags = [f"{flag}/--no-{flag[2:]}" for flag in flags]
    info = typer.Option(
        *flags,
        help=f"{_plain(field_info.description)} [dim]\\[{_show(field_info.default)}][/dim]",
        metavar=None if is_switch else _metavar(field_info.annotation),
        rich_help_panel=setting_group(name),
        show_default=False,
        autocompletion=None if is_switch else setting_completer(name),
    )
    return _parameter(name, bool | None if is_switch else str | None, info)


def _plain(description: str | None) -> str:
    # Help is markup: `lorafit[wandb]` would lose its bracket.
    return (description or "").replace("[", "\\[")


def _show(default: Any) -> str:
    if default is None or default == ():
        return "none"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    parts = [a for a in (get_args(annotation) or (annotation,)) if a is not type(None)]
    text = str(parts)
    if "tuple" in text:
        return "NAME,..."
    return "NUMBER" if "float" in text else "INTEGER" if "int" in text else "TEXT"
