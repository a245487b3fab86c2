"""What to change first when a run does not fit: each change with the bytes that it saves.

The bytes are those of exact estimates with that change made, never rules of thumb.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorafit.config.schema import Settings
from lorafit.hardware.info import DeviceKind
from lorafit.memory.estimate import Estimate, Verdict
from lorafit.units import MIB

EstimateOf = Callable[[Settings], Estimate]

_MIN_SAVED_BYTES = 16 * MIB
"""A change that saves less is not worth a person's attention."""
_SHORTEST_ROWS = 128
_LOWEST_RANK = 8
_MAX_COMBINED = 12
"""Changes that a combination may need; halving a micro-batch of 4096 takes as many."""
_WANTED: dict[Verdict, tuple[Verdict, ...]] = {
    "exceeds": ("fits", "tight"),
    "tight": ("fits",),
    "fits": (),
}


@dataclass(frozen=True)
class Change:
    """One way to take less memory."""

    what: str
    cost: str
    """What a person gives up for it."""
    values: Mapping[str, Any]
    """The settings that it sets."""

    @property
    def flags(self) -> str:
        """The change as flags to type."""
        return flags_of(self.values)


@dataclass(frozen=True)
class Saving:
    """A change, or several, and the exact estimate with it."""

    changes: tuple[Change, ...]
    estimate: Estimate
    saved_bytes: int

    @property
    def values(self) -> dict[str, Any]:
        """The settings of all changes; a later one wins."""
        return {name: value for change in self.changes for name, value in change.values.items()}

    @property
    def flags(self) -> str:
        """All changes as flags to type."""
        return flags_of(self.values)


@dataclass(frozen=True)
class Advice:
    """What to change first; empty for a run that fits."""

    savings: tuple[Saving, ...] = field(default=())
    """Single changes that save memory, the one that costs a person least first."""
    together: Saving | None = None
    """The cheapest changes that together reach the aim, where no single one does."""
    reached: bool = False
    """Whether a single change or `together` makes it fit."""


def flags_of(values: Mapping[str, Any]) -> str:
    """Return settings as command-line flags."""
    return " ".join(
        f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}"
        + ("" if isinstance(value, bool) else f" {'none' if value is None else value}")
        for name, value in values.items()
    )


def possible_changes(settings: Settings, kind: DeviceKind) -> list[Change]:
    """Return the changes that are left to make, the one that costs a person least first."""
    options = (
        _lean_kernels(settings),
        _fused_attention(settings, kind),
        _smaller_micro_batch(settings),
        _checkpointing(settings),
        _four_bits(settings),
        _lower_rank(settings),
        _shorter_rows(settings),
    )
    return [option for option in options if option is not None]


def _lean_kernels(settings: Settings) -> Change | None:
    if settings.kernels == "lorafit":
        return None
    cost = "costs nothing: the same numbers from less memory"
    return Change("lorafit's kernels, which never hold all logits", cost, {"kernels": "lorafit"})


def _fused_attention(settings: Settings, kind: DeviceKind) -> Change | None:
    if settings.attn_implementation != "eager" or kind == "cpu":
        return None
    cost = "costs nothing: the same attention, faster"
    return Change("fused attention", cost, {"attn_implementation": "sdpa"})


def _smaller_micro_batch(settings: Settings) -> Change | None:
    rows = settings.per_device_train_batch_size
    if rows == 1:
        return None
    fewer = next(n for n in range(rows // 2, 0, -1) if rows % n == 0)
    steps = settings.gradient_accumulation_steps * (rows // fewer)
    return Change(
        "a smaller micro-batch" if rows != 2 * fewer else "half the micro-batch",
        f"a little slower; the effective batch stays {fewer * steps} a device",
        {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": steps},
    )


def _checkpointing(settings: Settings) -> Change | None:
    if settings.gradient_checkpointing and settings.checkpointed_layers is None:
        return None
    if settings.gradient_checkpointing:
        return Change("checkpoint every layer", "a little slower", {"checkpointed_layers": None})
    cost = "about a third slower; the same numbers"
    return Change("gradient checkpointing", cost, {"gradient_checkpointing": True})


def _four_bits(settings: Settings) -> Change | None:
    if settings.quantization == "nf4":
        return None
    cost = "slower, and the base model is rounded to 4 bits"
    return Change("base weights in 4 bits", cost, {"quantization": "nf4"})


def _lower_rank(settings: Settings) -> Change | None:
    if settings.lora_r <= _LOWEST_RANK:
        return None
    rank = max(_LOWEST_RANK, settings.lora_r // 2)
    return Change("a lower rank", "the adapter can learn less", {"lora_r": rank})


def _shorter_rows(settings: Settings) -> Change | None:
    if settings.max_length < 2 * _SHORTEST_ROWS:
        return None
    tokens = settings.max_length // 2
    cost = f"rows of more than {tokens} tokens are cut: see `lorafit data inspect`"
    return Change("shorter rows", cost, {"max_length": tokens})


def advise(settings: Settings, current: Estimate, kind: DeviceKind, estimate: EstimateOf) -> Advice:
    """Return what to change so that a run fits that exceeds, or is wide that is tight.

    Args:
        settings: the settings of the run.
        current: its estimate.
        kind: the kind of its device.
        estimate: exact estimate of the run with other settings; called once a change.
    """
    wanted = _WANTED[current.verdict]
    if not wanted:
        return Advice()
    savings = []
    for change in possible_changes(settings, kind):
        saving = _apply((change,), settings, current, estimate)
        if saving.saved_bytes >= _MIN_SAVED_BYTES:
            savings.append(saving)
    if any(saving.estimate.verdict in wanted for saving in savings):
        return Advice(tuple(savings), reached=True)
    together = _combine(settings, current, kind, estimate)
    reached = together is not None and together.estimate.verdict in wanted
    return Advice(tuple(savings), together, reached)


def _apply(
    changes: tuple[Change, ...], settings: Settings, current: Estimate, estimate: EstimateOf
) -> Saving:
    changed = settings
    for change in changes:
        changed = changed.model_copy(update=dict(change.values))
    result = estimate(changed)
    saved = current.peak.process_bytes - result.peak.process_bytes
    return Saving(changes, result, saved)


def _combine(
    settings: Settings, current: Estimate, kind: DeviceKind, estimate: EstimateOf
) -> Saving | None:
    """Make the cheapest change that is left until the run fits; a useless one is not kept."""
    wanted = _WANTED[current.verdict]
    kept: Saving | None = None
    refused: set[str] = set()
    for _ in range(_MAX_COMBINED):
        made = kept.changes if kept else ()
        now = settings.model_copy(update=kept.values if kept else {})
        left = [c for c in possible_changes(now, kind) if c.what not in refused]
        if not left:
            break
        saving = _apply((*made, left[0]), settings, current, estimate)
        if saving.saved_bytes < (kept.saved_bytes if kept else 0) + _MIN_SAVED_BYTES:
            refused.add(left[0].what)
            continue
        kept = saving
        if kept.estimate.verdict in wanted:
            break
    return kept


def advice_document(advice: Advice) -> dict[str, Any]:
    """Return the advice for a JSON document."""
    together = None if advice.together is None else _saving_document(advice.together)
    return {
        "reached": advice.reached,
        "changes": [_saving_document(saving) for saving in advice.savings],
        "together": together,
    }


def _saving_document(saving: Saving) -> dict[str, Any]:
    return {
        "what": [change.what for change in saving.changes],
        "cost": [change.cost for change in saving.changes],
        "settings": saving.values,
        "flags": saving.flags,
        "saved_bytes": saving.saved_bytes,
        "process_bytes": saving.estimate.peak.process_bytes,
        "verdict": saving.estimate.verdict,
    }
