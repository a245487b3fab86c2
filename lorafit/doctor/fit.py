"""Which presets fit on a device, by the estimates of `lorafit.memory`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorafit.config.batch import resolve_batch
from lorafit.config.presets import preset_names
from lorafit.config.resolve import resolve_run
from lorafit.config.schema import Settings
from lorafit.errors import LorafitError
from lorafit.hardware.info import DeviceInfo
from lorafit.memory.cache import cached_estimate
from lorafit.memory.closed_form import estimate_fast
from lorafit.memory.estimate import Estimate
from lorafit.units import format_bytes

ConfigReader = Callable[[str], dict[str, Any]]
Estimator = Callable[[Settings, dict[str, Any], DeviceInfo], Estimate]

PREFERENCE = ("balanced", "low", "safe", "memory-limited", "high", "production", "quick-test")
"""Presets to start with, the first that fits: those for every day before those for a purpose."""


@dataclass(frozen=True)
class PresetFit:
    """Whether a preset fits on a device, and what it takes."""

    preset: str
    verdict: Literal["fits", "tight", "exceeds", "unsupported"]
    peak_bytes: int | None
    """Peak of the whole process; None where the device cannot run the preset at all."""
    capacity_bytes: int
    is_exact: bool
    """Traced; otherwise the closed form, which is some per cent off."""
    reason: str
    flags: str = ""
    """What has to be added to the preset's name to make it fit."""


class _NotStoredError(Exception):
    """No exact estimate is stored."""


def estimate_stored(
    settings: Settings, model_config: dict[str, Any], device: DeviceInfo
) -> Estimate:
    """Return the exact estimate where one is stored, else the closed form: never a trace."""

    def give_up() -> Estimate:
        raise _NotStoredError

    try:
        return cached_estimate(settings, model_config, device, give_up)
    except _NotStoredError:
        return estimate_fast(settings, model_config, device)


def estimate_exactly(
    settings: Settings, model_config: dict[str, Any], device: DeviceInfo
) -> Estimate:
    """Return the exact estimate: traced, which takes seconds, unless it is stored."""
    from lorafit.memory.planner import estimate_with_cache
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    return estimate_with_cache(settings, model_config, device)


def fit_presets(
    device: DeviceInfo,
    read_config: ConfigReader,
    *,
    model: str | None = None,
    exact: Sequence[str] = (),
) -> list[PresetFit]:
    """Return how each shipped preset fits on `device`, the preferred presets first.

    Args:
        device: the device.
        read_config: returns config.json of a model by its name.
        model: the base model; none: each preset's own, which is Phi-2 for most.
        exact: presets that are traced; the others are, where an answer is stored.

    Raises:
        ConfigError: a shipped preset is damaged.
    """
    names = sorted(preset_names(), key=_rank)
    return [
        fit_preset(
            name,
            device,
            read_config,
            model,
            estimate_exactly if name in exact else estimate_stored,
        )
        for name in names
    ]


def _rank(name: str) -> tuple[int, str]:
    return (PREFERENCE.index(name) if name in PREFERENCE else len(PREFERENCE)), name


def fit_preset(
    name: str,
    device: DeviceInfo,
    read_config: ConfigReader,
    model: str | None,
    estimate: Estimator,
    **flags: str,
) -> PresetFit:
    """Return how one preset fits; where it leaves the micro-batch open, with the smallest one.

    Raises:
        UsageError: there is no such preset.
        ConfigError: the preset is damaged.
    """
    resolved = resolve_run(
        preset=name,
        config_file=None,
        overrides=[],
        flags={**flags, **({"model": model} if model is not None else {})},
        environ={},
        device=device,
    )
    batch = resolve_batch(resolved, num_devices=1)
    settings = resolved.settings.model_copy(
        update={
            "per_device_train_batch_size": batch.per_device_train_batch_size,
            "gradient_accumulation_steps": batch.gradient_accumulation_steps,
            "effective_batch_size": None,
        }
    )
    spelled = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in flags.items())
    try:
        config = read_config(settings.model)
        found = estimate(settings, config, device)
        if found.verdict == "exceeds" and resolved.row and resolved.row.leaves_micro_batch:
            smallest = _smallest(settings, batch.effective_batch_size)
            found = estimate(smallest, config, device)
    except LorafitError as refusal:
        capacity = device.usable_bytes
        return PresetFit(name, "unsupported", None, capacity, False, str(refusal), spelled)
    peak = found.peak.process_bytes
    is_exact = found.cached or estimate is estimate_exactly
    reason = f"takes {format_bytes(peak)} of {format_bytes(found.capacity_bytes)}"
    return PresetFit(name, found.verdict, peak, found.capacity_bytes, is_exact, reason, spelled)


def _smallest(settings: Settings, effective_batch_size: int) -> Settings:
    """Return the settings as the planner would shrink them to the last: row by row."""
    return settings.model_copy(
        update={
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": effective_batch_size,
            "gradient_checkpointing": True,
            "checkpointed_layers": None,
        }
    )


def best_fit(
    fits: Sequence[PresetFit], device: DeviceInfo, read_config: ConfigReader, model: str | None
) -> PresetFit | None:
    """Return the preset to start with: the first that fits, one that is tight, one in 4 bits.

    Presets of a family are for its data and model, so that only those of no family are looked at.
    """
    general = [fit for fit in fits if "/" not in fit.preset]
    for verdict in ("fits", "tight"):
        for fit in general:
            if fit.verdict == verdict:
                return fit
    for name in ("memory-limited", "safe"):
        quantized = fit_preset(
            name, device, read_config, model, estimate_stored, quantization="nf4"
        )
        if quantized.verdict in ("fits", "tight"):
            return quantized
    return None
