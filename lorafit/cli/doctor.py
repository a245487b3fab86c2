"""`lorafit doctor`: check this machine, and say how to fix what is wrong."""

from typing import TYPE_CHECKING, Annotated

import typer

from lorafit.cli import console
from lorafit.cli.options import Json

if TYPE_CHECKING:
    from lorafit.doctor.probe import Probe
    from lorafit.doctor.question import Question
    from lorafit.doctor.report import DoctorReport, Finding, Recommended

_ASKED_SECONDS = 60.0
_DEEP_SECONDS = 300.0
_PLAIN_SECONDS = 10.0
_ASKED_PANEL = "What else to check"


Checks = Annotated[
    list[str] | None,
    typer.Option("--check", metavar="ID", help="Run this check or group only; repeatable."),
]
ListChecks = Annotated[bool, typer.Option("--list", help="List the checks; run none.")]
Strict = Annotated[bool, typer.Option("--strict", help="Warnings fail too: exit 1.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=1,
        max=3600,
        help="Seconds for all checks together. [dim]\\[10; 60 with a preset, model or data; "
        "300 with --deep][/dim]",
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="Device to check: auto, cuda, cuda:1, mps or cpu.")
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Also trace this preset on this machine.",
        metavar="NAME",
        rich_help_panel=_ASKED_PANEL,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Also check this model's files, hashes and tokenizer.",
        metavar="FOLDER|ID",
        rich_help_panel=_ASKED_PANEL,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Also read this training data and count it.",
        metavar="FILE",
        rich_help_panel=_ASKED_PANEL,
    ),
]
Deep = Annotated[
    bool,
    typer.Option(
        "--deep",
        help="Also train, kill and resume a tiny model, trace the presets, read every weight, "
        "and contact the hub.",
        rich_help_panel=_ASKED_PANEL,
    ),
]


def command(
    as_json: Json = False,
    check: Checks = None,
    list_checks: ListChecks = False,
    strict: Strict = False,
    timeout: Timeout = None,
    device: Device = "auto",
    preset: Preset = None,
    model: Model = None,
    data: Data = None,
    deep: Deep = False,
) -> None:
    """Check this machine, and say how to fix what is wrong.

    Exit code 0: nothing is wrong (warnings allowed). 1: an error, or a check crashed.
    Uses no network without --deep, and writes only temporary files. Names, hosts and tokens are
    left out, so the output can be shared.

    Examples:
      lorafit doctor

      lorafit doctor --preset balanced --model models/phi-2 --data my.jsonl

      lorafit doctor --deep --json > doctor.json
    """
    from lorafit.doctor.check import select_checks
    from lorafit.doctor.probe import Probe
    from lorafit.doctor.question import Question
    from lorafit.doctor.report import make_report
    from lorafit.doctor.runner import run_checks
    from lorafit.hardware.detect import verify_device_name

    verify_device_name(device)
    question = Question(preset=preset, model=model, data=data, is_deep=deep)
    _verify(question.preset)
    checks = select_checks(check or [])
    if list_checks:
        for entry in checks:
            console.out(f"{entry.id:<18} {entry.group}: {entry.title}")
        return
    seconds = _default_seconds(question) if timeout is None else timeout
    probe = Probe(requested_device=device, timeout_seconds=seconds, question=question)
    findings = run_checks(checks, probe)
    report = make_report(findings, _recommend(probe, findings))
    if as_json:
        console.print_json(report.model_dump(mode="json"))
    else:
        _print(report)
    if report.has_failed(strict=strict):
        raise typer.Exit(1)


def _default_seconds(question: "Question") -> float:
    if question.is_deep:
        return _DEEP_SECONDS
    is_asked = any((question.preset, question.model, question.data))
    return _ASKED_SECONDS if is_asked else _PLAIN_SECONDS


def _verify(preset: str | None) -> None:
    """Refuse a preset that does not exist, before any check runs."""
    if preset is not None:
        from lorafit.config.presets import load_preset

        load_preset(preset)


def _recommend(probe: "Probe", findings: "list[Finding]") -> "Recommended":
    """Return the preset to start with; traced estimates only where a check has made them."""
    from lorafit.doctor.fit import best_fit, fit_presets
    from lorafit.doctor.report import recommend

    statuses = {finding.id: finding.status for finding in findings}
    # What a check waits for in vain must not be waited for again.
    device = None if statuses.get("device") == "crash" else probe.usable_device()
    if device is None:
        return recommend(None, [], None)
    is_estimated = statuses.get("gpu.fit") not in (None, "crash")
    try:
        read, model = probe.model_config, probe.question.model
        fits = probe.fits() if is_estimated else fit_presets(device, read, model=model)
        return recommend(device, fits, best_fit(fits, device, read, model))
    except Exception:  # the finding of gpu.fit says why; the report must come out all the same
        return recommend(device, [], None)


def _print(report: "DoctorReport") -> None:
    from lorafit.doctor.text import report_lines

    stdout = console.stdout_console()
    for line in report_lines(
        report, width=min(stdout.width, 100), ascii_only=not _can_print_marks(stdout.encoding)
    ):
        console.out(line)


def _can_print_marks(encoding: str) -> bool:
    try:
        "✓✗⊘".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
