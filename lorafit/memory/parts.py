"""The parts of an estimate as people see them: one table for the bar, the tables and the chart."""

from collections.abc import Mapping
from typing import NamedTuple

from lorafit.memory.events import Category


class Part(NamedTuple):
    """One part of the memory of a process."""

    key: str
    """Its key in the breakdown of an estimate."""
    letter: str
    """What stands for it in a bar without colours."""
    label: str
    colour: str
    """Paul Tol's bright and light palettes, which stay apart for the colour-blind."""
    category: Category | None
    """The category of its storages; None for what no tensor holds."""


PARTS = (
    Part("weights_bytes", "W", "base weights", "#4477aa", Category.WEIGHTS),
    Part("gathered_bytes", "S", "gathered weights", "#88ccee", Category.GATHERED),
    Part("adapter_bytes", "L", "LoRA adapter", "#66ccee", Category.ADAPTER),
    Part("gradient_bytes", "G", "gradients", "#aa3377", Category.GRADIENT),
    Part("optimizer_bytes", "O", "optimizer", "#ccbb44", Category.OPTIMIZER),
    Part("activation_bytes", "A", "activations", "#228833", Category.ACTIVATION),
    Part("logits_bytes", "V", "logits and loss", "#ee6677", Category.LOGITS),
    Part("workspace_bytes", "K", "kernels' scratch", "#ee8866", Category.WORKSPACE),
    Part("fragmentation_bytes", "F", "cached or fragmented", "#bbbbbb", None),
    Part("context_bytes", "C", "device context", "#7f7f8f", None),
)
"""Every part of the breakdown, in the order in which bars and charts stack them."""


def parts_of(*breakdowns: Mapping[str, int]) -> list[Part]:
    """Return the parts to show: gathered weights only where there are any."""
    rare = "gathered_bytes"
    is_there = any(rare in breakdown for breakdown in breakdowns)
    return [part for part in PARTS if part.key != rare or is_there]
