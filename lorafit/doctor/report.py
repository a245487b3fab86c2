"""The result of a run of the doctor: findings, counts, and what to do on this machine.

These models are the schema of `lorafit doctor --json`.
"""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorafit import __version__
from lorafit.doctor.check import Check, Outcome, Status
from lorafit.doctor.redact import redact
from lorafit.hardware.info import DeviceInfo
from lorafit.units import GIB, format_bytes

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


class Recommended(_Frozen):
    """Where to train on this machine and with which preset."""

    device: str | None
    preset: str | None
    reason: str


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


def make_report(findings: list[Finding], device: DeviceInfo | None) -> DoctorReport:
    """Return the whole report; `device` is None when none could be used."""
    counts = dict.fromkeys(Summary.model_fields, 0)
    for finding in findings:
        counts[finding.status] += 1
    return DoctorReport(
        lorafit=__version__,
        generated_at=datetime.now(UTC).isoformat(timespec="seconds"),
        summary=Summary(**counts),
        recommended=recommend(device),
        findings=findings,
    )


def recommend(device: DeviceInfo | None) -> Recommended:
    """Return the preset to start with on `device`: by kind and usable memory, with the reason.

    The bounds follow the training guide: `balanced` takes about 16 GB on a 24 GB GPU, `low`
    about 12 GB; on a Mac `low` takes about 12 GB and `safe` about 10 GB.
    """
    if device is None:
        return Recommended(device=None, preset=None, reason="no device can be used; see above")
    memory = format_bytes(device.usable_bytes)
    if device.kind == "cpu":
        preset, why = "quick-test", "a CPU is slow: prove the set-up here, train on a GPU"
    elif device.kind == "mps" and device.usable_bytes < 14 * GIB:
        preset, why = "safe", f"Metal grants {memory}; balanced wants about 14 GB"
    elif device.usable_bytes >= 20 * GIB or device.kind == "mps":
        preset, why = "balanced", f"{memory} is enough for Phi-2 with room to spare"
    elif device.usable_bytes >= 14 * GIB:
        preset, why = "low", f"{memory} is short of the 16 GB that balanced takes"
    else:
        preset, why = "memory-limited", f"{memory} asks for small batches and checkpointing"
    return Recommended(
        device=device.torch_device, preset=preset, reason=redact(f"{device.name}: {why}")
    )
