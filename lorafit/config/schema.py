"""The schema of a run: every setting, with its meaning, unit, range and default.

`Settings` is flat, frozen and strict. It is the only list of settings: command-line flags,
`lorafit config aliases` and the reference in docs/ are generated from it. The defaults are those
of the training guide for Phi-2 (effective batch 64, 20 epochs, rank 8). A setting is one field of
its group's class in `lorafit/config/settings/`.
"""

from typing import Any

from lorafit.config.settings.batch import BatchSettings
from lorafit.config.settings.data import DataSettings
from lorafit.config.settings.declare import Recommended, SettingsGroup
from lorafit.config.settings.lora import LoraSettings
from lorafit.config.settings.model import ModelSettings
from lorafit.config.settings.optimization import OptimizationSettings
from lorafit.config.settings.reinforcement import ReinforcementSettings
from lorafit.config.settings.run import RunSettings

SCHEMA_VERSION = 1


class Settings(
    # Pydantic takes the fields of the last base first: the groups stand in reverse.
    RunSettings,
    ReinforcementSettings,
    OptimizationSettings,
    BatchSettings,
    DataSettings,
    LoraSettings,
    ModelSettings,
):
    """Every setting of a run under its one name; immutable once validated."""


_GROUPS: dict[str, type[SettingsGroup]] = {
    "Model": ModelSettings,
    "LoRA": LoraSettings,
    "Data": DataSettings,
    "Batch and memory": BatchSettings,
    "Optimization": OptimizationSettings,
    "Reinforcement learning": ReinforcementSettings,
    "Run": RunSettings,
}
SETTING_GROUPS = tuple(_GROUPS)


def setting_group(name: str) -> str:
    """Return the help panel of a setting."""
    return next(group for group, settings in _GROUPS.items() if name in settings.model_fields)


def is_preset_setting(name: str) -> bool:
    """Return whether a preset may hold this setting; False for paths and devices."""
    return bool(_extra(name)["preset"])


def recommended_range(name: str) -> Recommended | None:
    """Return the recommended range of a setting, if it has one."""
    value = _extra(name)["recommended"]
    return value if isinstance(value, Recommended) else None


def _extra(name: str) -> dict[str, Any]:
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra
