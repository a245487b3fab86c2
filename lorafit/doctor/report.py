"""The result of a run of the doctor: findings, counts, and what to do on this machine.

These models are the schema of `lorafit doctor --json`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorafit import __version__
from lorafit.doctor.check import Check, Outcome, Status
from lorafit.doctor.fit import PresetFit
from lorafit.doctor.redact import redact
from lorafit.hardware.info import DeviceInfo
from lorafit.units import format_bytes

WHY = "; why it matters: "
"""Stands in a finding's detail between the facts and their consequence."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fix(_Frozen):
    """How to put a finding right."""

    text: str
    commands: list[str] = Field(description="lines to paste into a shell")


class Finding(_Frozen):
    """What one check found."""

    id: str
    group: str
    status: Status
    title: str
    detail: str = Field(
        description="the facts, and why they matter unless all is well; for skip the reason"
    )
    measured: str | None
    required: str | None
    fix: Fix | None
    docs_url: str | None
    duration_ms: int = Field(ge=0)


class Summary(_Frozen):
    """How many findings have each status."""

    ok: int
    warn: int
    error: int
    skip: int
    crash: int


class PresetVerdict(_Frozen):
    """How a preset fits on the device."""

    name: str
    verdict: Literal["fits", "tight", "exceeds", "unsupported"]
    peak_bytes: int | None = Field(description="of the whole process; null where it cannot run")
    capacity_bytes: int
    exact: bool = Field(description="traced; otherwise a closed form, some per cent off")


class Recommended(_Frozen):
    """Where to train on this machine and with which preset."""

    device: str | None
    preset: str | None
    reason: str
    command: str | None = Field(description="what to type next; FILE is the training data")
    presets: list[PresetVerdict] = Field(description="every preset, those to start with first")


class DoctorReport(_Frozen):
    """The document that `lorafit doctor --json` prints."""

    schema_version: Literal[1] = 1
    lorafit: str
    generated_at: str = Field(description="UTC, ISO 8601")
    summary: Summary
    recommended: Recommended
    findings: list[Finding]

    def has_failed(self, *, strict: bool) -> bool:
        """Return whether anything is an error or crashed, or, if strict, a warning."""
        return bool(self.summary.error or self.summary.crash or (strict and self.summary.warn))


def make_finding(entry: Check, outcome: Outcome, duration_seconds: float) -> Finding:
    """Return the finding for an outcome, with names, hosts, ids and tokens taken out."""
    commands = [redact(command) for command in outcome.commands]
    return Finding(
        id=entry.id,
        group=entry.group,
        status=outcome.status,
        title=entry.title,
        detail=redact(_with_affects(entry, outcome)),
        measured=redact(outcome.measured) if outcome.measured else None,
        required=outcome.required,
        fix=Fix(text=redact(outcome.fix), commands=commands) if outcome.fix else None,
        docs_url=entry.docs_url,
        duration_ms=round(duration_seconds * 1000),
    )


def _with_affects(entry: Check, outcome: Outcome) -> str:
    if outcome.status not in ("warn", "error"):
        return outcome.detail
    return f"{outcome.detail}{WHY}{entry.affects}"


def make_report(findings: list[Finding], recommended: Recommended) -> DoctorReport:
    """Return the whole report."""
    counts = dict.fromkeys(Summary.model_fields, 0)
    for finding in findings:
        counts[finding.status] += 1
    return DoctorReport(
        lorafit=__version__,
        generated_at=datetime.now(UTC).isoformat(timespec="seconds"),
        summary=Summary(**counts),
        recommended=recommended,
        findings=findings,
    )


def recommend(
    device: DeviceInfo | None, fits: Sequence[PresetFit], best: PresetFit | None
) -> Recommended:
    """Return where to train and with which preset, from what every preset takes there.

    Args:
        device: the device; None when none can be used.
        fits: how the shipped presets fit on it.
        best: the one to start with, by `lorafit.doctor.fit.best_fit`.
    """
    if device is None:
        return Recommended(
            device=None,
            preset=None,
            reason="no device can be used; see above",
            command=None,
            presets=[],
        )
    preset, why = _choose(device, best, has_fits=bool(fits))
    command = f"lorafit train --preset {preset} --data FILE" if preset else None
    if best is not None and preset == best.preset and best.flags:
        command = f"lorafit train --preset {preset} {best.flags} --data FILE"
    return Recommended(
        device=device.torch_device,
        preset=preset,
        reason=redact(f"{device.name}: {why}"),
        command=command,
        presets=[
            PresetVerdict(
                name=fit.preset,
                verdict=fit.verdict,
                peak_bytes=fit.peak_bytes,
                capacity_bytes=fit.capacity_bytes,
                exact=fit.is_exact,
            )
            for fit in fits
        ],
    )


def _choose(
    device: DeviceInfo, best: PresetFit | None, *, has_fits: bool
) -> tuple[str | None, str]:
    if device.kind == "cpu":
        return "quick-test", "a CPU is slow: prove the set-up here, train on a GPU"
    if best is None and not has_fits:
        return None, "what the presets take there could not be estimated; see above"
    if best is None:
        memory = format_bytes(device.usable_bytes)
        return None, f"no preset fits in {memory}, not with 4-bit weights either"
    return best.preset, f"{'with 4-bit weights it' if best.flags else 'it'} {best.reason}"
