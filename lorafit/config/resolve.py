"""The one way from what a person gave to the settings of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorafit.config.accelerate import accelerate_layer
from lorafit.config.files import config_file_layer
from lorafit.config.groups import split_groups
from lorafit.config.layers import (
    Layer,
    Resolved,
    RowChoice,
    environment_layer,
    flags_layer,
    overrides_layer,
    resolve_layers,
)
from lorafit.config.presets import Preset, load_preset
from lorafit.errors import ConfigError, Problem, UsageError
from lorafit.hardware.info import DeviceInfo

__all__ = ["Resolved", "resolve_run"]


def resolve_run(
    *,
    preset: str | None,
    config_file: Path | None,
    overrides: Sequence[str],
    flags: Mapping[str, str | bool],
    environ: Mapping[str, str],
    device: DeviceInfo,
    recorded: Layer | None = None,
) -> Resolved:
    """Return the settings of a run on `device`, each with its origin.

    Precedence: defaults < preset < the preset's hardware row < config file < environment
    `LORAFIT_*` < config groups (`training=aggressive`) < key=value < flags. What `accelerate
    launch` was configured for outweighs presets, and may not contradict the rest. `recorded`, the
    settings of an earlier run, is just above the defaults. `preset` wins over the one that the
    config file names; with neither, there is no preset and the defaults hold.

    Raises:
        UsageError: there is no such preset.
        ConfigError: with every problem of every layer.
    """
    layers: list[Layer] = []
    base = None
    if config_file is not None:
        file_layer, base = config_file_layer(config_file)
        layers.append(file_layer)
    groups, singles = split_groups(overrides)
    layers += [environment_layer(environ), *groups, overrides_layer(singles), flags_layer(flags)]
    launched = accelerate_layer(environ, layers)
    layers.append(launched.layer)
    chosen: Preset | None = None
    row: RowChoice | None = None
    if preset is not None:
        chosen = load_preset(preset)
    elif base is not None:
        chosen = _load_base(str(base.value), base.where)
    if chosen is not None:
        row = chosen.choose_row(device)
        layers = [chosen.layer, row.layer, *layers]
    if recorded is not None:
        layers.insert(0, recorded)
    resolved = resolve_layers(layers)
    name = chosen.name if chosen else None
    return replace(resolved, preset=name, row=row, zero_stage=launched.zero_stage)


def _load_base(name: str, where: str) -> Preset:
    try:
        return load_preset(name)
    except UsageError as error:
        # The name stands in a file: bad input, not a wrong command line.
        raise ConfigError([Problem(f"{where}: preset", error.message, error.hint)]) from None
