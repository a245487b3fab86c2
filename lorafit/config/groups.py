"""Config groups: `training=aggressive` chooses a named set of settings, as Hydra users type it.

An option is a file `presets/groups/GROUP/NAME.yaml`. Its settings stand below every single
setting that was typed, whatever the order, and above files and variables. `+` before a key, which
Hydra wants where a key is new, means nothing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafit.config.document import Node
from lorafit.config.fields import SettingValue
from lorafit.config.files import require_version
from lorafit.config.layers import Given, Layer, validate_values
from lorafit.config.loading import load_document
from lorafit.config.presets import presets_dir
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, Problem
from lorafit.text import excerpt, nearest

GROUPS = ("model", "training", "optimizer", "experiment")
"""In the order in which they are applied: an experiment has the last word."""


@dataclass(frozen=True)
class GroupOption:
    """One choice of a group."""

    group: str
    name: str
    description: str
    layer: Layer

    @property
    def settings(self) -> dict[str, SettingValue]:
        """The settings that the option gives."""
        return {name: setting.value for name, setting in validate_values(self.layer)[0].items()}


def list_options() -> tuple[GroupOption, ...]:
    """Return every option of every group.

    Raises:
        ConfigError: one of the shipped files is damaged.
    """
    return tuple(load_option(group, name) for group in GROUPS for name in option_names(group))


def option_names(group: str) -> tuple[str, ...]:
    """Return the names of a group's options, sorted."""
    return tuple(sorted(path.stem for path in _folder(group).glob("*.yaml")))


def load_option(group: str, name: str) -> GroupOption:
    """Return one shipped option.

    Raises:
        ConfigError: the file is damaged.
    """
    label = f"presets/groups/{group}/{name}.yaml"
    document = load_document(_folder(group) / f"{name}.yaml", name=label)
    require_version(document, needed_by="config group")
    table = document.entries.get("settings", Node({}, 1)).value
    description = document.entries.get("description", Node("", 1)).value
    values = {
        key: Given(node.plain(), document.where(node))
        for key, node in (table.items() if isinstance(table, dict) else ())
    }
    layer = Layer(f"{group}={name}", "group", values)
    problems = validate_values(layer)[1]
    if problems:
        raise ConfigError(problems)
    return GroupOption(group, name, str(description), layer)


def split_groups(overrides: Sequence[str]) -> tuple[list[Layer], list[str]]:
    """Return the layers of the groups that were chosen, and the overrides that are left.

    `model=NAME` is a group where NAME is one of its options, and the setting `model` otherwise.
    """
    chosen: dict[str, Layer] = {}
    rest: list[str] = []
    for text in overrides:
        key, equals, value = text.removeprefix("+").removeprefix("+").partition("=")
        group, option = key.strip(), value.strip().replace("-", "_")
        if not equals or group not in GROUPS:
            rest.append(key + equals + value)
        elif group in chosen:
            problem = Problem(f"override {group}", "the group is given twice", "keep one of them")
            chosen[group] = Layer(group, "override", {}, (problem,))
        elif option in option_names(group):
            chosen[group] = load_option(group, option).layer
        elif group in Settings.model_fields:
            rest.append(key + equals + value)
        else:
            chosen[group] = Layer(group, "override", {}, (_unknown_option(group, value),))
    return [chosen[group] for group in GROUPS if group in chosen], rest


def _unknown_option(group: str, name: str) -> Problem:
    known = option_names(group)
    guess = nearest(name, known)
    hint = f"did you mean {group}={guess}? " if guess else ""
    message = f"the config group {group} has no option {excerpt(name, 40)!r}"
    return Problem(f"override {group}", message, f"{hint}options: {', '.join(known)}")


def _folder(group: str) -> Path:
    return presets_dir() / "groups" / group
