"""Which presets fit on this machine, and the preset that was asked about."""

from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.fit import PresetFit, best_fit
from lorafit.doctor.probe import Probe
from lorafit.errors import LorafitError
from lorafit.units import format_bytes


@check(
    "gpu.fit",
    "Device",
    "Presets that fit",
    affects="a preset that does not fit is refused before it starts",
)
def presets_that_fit(probe: Probe) -> Outcome:
    """Estimate the peak memory of every preset on this device."""
    device = probe.usable_device()
    if device is None:
        return skip("no device can be used")
    try:
        fits = probe.fits()
        best = best_fit(fits, device, probe.model_config, probe.question.model)
    except LorafitError as problem:
        return error(str(problem), problem.hint or "see preset.valid")
    model = f" {probe.question.model}" if probe.question.model else ""
    detail = f"{_count(fits)} of {len(fits)} fit{model}: {_listed(fits)}"
    required = f"{format_bytes(device.usable_bytes)} usable"
    free = device.free_bytes
    if best is None or best.peak_bytes is None:
        return error(
            detail,
            "train a smaller model, or on a device with more memory",
            "lorafit estimate-memory --preset safe --quantization nf4 --hardware NAME",
            required=required,
        )
    measured = f"{best.preset} {best.reason}"
    if free is not None and free < best.peak_bytes:
        return warn(
            f"{detail}; but only {format_bytes(free)} are free now",
            "close the programs that hold the rest",
            f"lorafit train --preset {best.preset} --data FILE --dry-run",
            measured=measured,
            required=required,
        )
    if best.flags:
        return warn(
            detail,
            "train with 4-bit weights",
            f"lorafit train --preset {best.preset} {best.flags} --data FILE",
            measured=measured,
            required=required,
        )
    return ok(detail, measured=measured, required=required)


def _count(fits: list[PresetFit]) -> int:
    return sum(fit.verdict in ("fits", "tight") for fit in fits)


def _listed(fits: list[PresetFit]) -> str:
    """Return the presets by verdict, each with its peak; those of a family are only counted."""
    words = {"fits": "", "tight": "tight ", "exceeds": "too large ", "unsupported": "refused "}
    general = [fit for fit in fits if "/" not in fit.preset]
    parts = []
    for verdict, word in words.items():
        named = [
            fit.preset if fit.peak_bytes is None else f"{fit.preset} {format_bytes(fit.peak_bytes)}"
            for fit in general
            if fit.verdict == verdict
        ]
        if named:
            parts.append(f"{word}{', '.join(named)}")
    for family in sorted({fit.preset.partition("/")[0] for fit in fits if "/" in fit.preset}):
        members = [fit for fit in fits if fit.preset.startswith(f"{family}/")]
        parts.append(f"{_count(members)} of {len(members)} of {family}")
    how = "traced" if all(fit.is_exact for fit in fits) else "a closed form, some per cent off"
    return f"{'; '.join(parts)} ({how})"


@check(
    "preset.fit",
    "What you asked about",
    "Preset",
    affects="this is the preset you are about to train with",
)
def asked_preset(probe: Probe) -> Outcome:
    """Resolve the preset on this device and trace its step."""
    from lorafit.config.resolve import resolve_run

    name = probe.question.preset
    if name is None:
        return skip("only with --preset")
    device = probe.usable_device()
    if device is None:
        return skip("no device can be used")
    resolved = resolve_run(
        preset=name, config_file=None, overrides=[], flags={}, environ=probe.environ, device=device
    )
    fit = next(found for found in probe.fits() if found.preset == name)
    row = resolved.row.reason if resolved.row else ""
    detail = f"{name} {fit.reason}, traced; {row}" if fit.is_exact else f"{name}: {fit.reason}"
    if fit.verdict == "unsupported":
        return error(detail, "choose another preset or device", "lorafit presets list")
    measured = format_bytes(fit.peak_bytes or 0)
    required = f"{format_bytes(fit.capacity_bytes)} usable"
    if fit.verdict == "exceeds":
        return error(
            f"{name} does not fit: it {fit.reason}",
            "let the planner choose micro-batch and checkpointing, or take 4-bit weights",
            f"lorafit train --preset {name} --fit --data FILE --dry-run",
            f"lorafit train --preset {name} --quantization nf4 --data FILE --dry-run",
            measured=measured,
            required=required,
        )
    notes = (["memory is tight"] if fit.verdict == "tight" else []) + list(resolved.warnings)
    if notes:
        return warn(
            f"{detail}; {'; '.join(notes)}",
            "see the plan before you start",
            f"lorafit train --preset {name} --data FILE --dry-run",
            measured=measured,
            required=required,
        )
    return ok(detail, measured=measured, required=required)
