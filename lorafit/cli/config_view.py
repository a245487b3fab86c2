"""The settings as a run here would take them, and which of them are only decided at launch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lorafit.config.batch import BatchPlan
from lorafit.config.layers import Resolved
from lorafit.config.schema import SETTING_GROUPS, Settings, setting_group
from lorafit.training.planning.fit import PLANNED, wants_planner

_SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps", "effective_batch_size")
PLANNER_NOTE = (
    f"the planner decides {', '.join(PLANNED)} at launch, by the device's memory and the rows' "
    "lengths: lorafit train with the same flags, --data FILE and --dry-run shows them; lorafit "
    "estimate-memory shows them for rows of max_length"
)


class Shown(NamedTuple):
    """A setting as it is shown."""

    value: Any
    """As JSON has it; of one that is decided at launch, what holds where no plan fits."""
    origin: str
    is_decided_at_launch: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of `config show --json`."""
        entry = {"value": self.value, "origin": self.origin}
        return entry | ({"decided_at_launch": True} if self.is_decided_at_launch else {})

    def row(self, name: str) -> tuple[str, Any, str]:
        """Return the row of the table."""
        if self.is_decided_at_launch:
            return name, "at launch", "planner"
        return name, self.value, self.origin


def settled_settings(resolved: Resolved, batch: BatchPlan) -> dict[str, Shown]:
    """Return every setting with the value that a run takes and where that comes from.

    An effective batch settles how a step is split; a preset that leaves the split to the planner
    leaves it open until the data is known.
    """
    planned = PLANNED if wants_planner(resolved) else ()
    shown = {}
    for name, value in resolved.settings.model_dump(mode="json").items():
        origin = resolved.origins[name].text
        taken = getattr(batch, name) if name in _SPLIT and value is not None else value
        if taken != value:
            origin = f"follows from {_source(name, resolved)}; {value} by {origin}"
        shown[name] = Shown(taken, origin, name in planned)
    return shown


def _source(name: str, resolved: Resolved) -> str:
    """Return what a part of the batch follows from where it is not what it was set to."""
    if name == "effective_batch_size":
        return "micro-batch and accumulation"
    return f"effective_batch_size {resolved.settings.effective_batch_size}"


def tables(shown: Mapping[str, Shown]) -> list[tuple[str, list[tuple[str, Any, str]]]]:
    """Return the rows of every group of settings, with the group's name."""
    names = list(Settings.model_fields)
    return [
        (group, [shown[name].row(name) for name in names if setting_group(name) == group])
        for group in SETTING_GROUPS
    ]
