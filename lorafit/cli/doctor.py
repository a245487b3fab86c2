"""`lorafit doctor`: check this machine, and say how to fix what is wrong."""

from typing import Annotated

import typer


def command(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    check: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="ID", help="Run this check or group only; repeatable."),
    ] = None,
    list_checks: Annotated[bool, typer.Option("--list", help="List the checks; run none.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail too: exit 1.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, max=600, help="Seconds for all checks together.")
    ] = 10.0,
    device: Annotated[
        str, typer.Option("--device", help="Device to check: auto, cuda, cuda:1, mps or cpu.")
    ] = "auto",
) -> None:
    """Check this machine, and say how to fix what is wrong.

    Exit code 0: nothing is wrong (warnings allowed). 1: an error, or a check crashed.
    Uses no network and writes nothing but a temporary file. Names, hosts and tokens are left
    out, so the output can be shared.
    """
    from lorafit.cli import console
    from lorafit.doctor.check import select_checks
    from lorafit.doctor.probe import Probe
    from lorafit.doctor.report import make_report
    from lorafit.doctor.runner import run_checks
    from lorafit.doctor.text import report_lines
    from lorafit.hardware.detect import verify_device_name

    verify_device_name(device)
    checks = select_checks(check or [])
    if list_checks:
        for entry in checks:
            console.out(f"{entry.id:<18} {entry.group}: {entry.title}")
        return
    probe = Probe(requested_device=device, timeout_seconds=timeout)
    report = make_report(run_checks(checks, probe), probe.usable_device())
    if json:
        console.print_json(report.model_dump(mode="json"))
    else:
        stdout = console.stdout_console()
        for line in report_lines(
            report, width=min(stdout.width, 100), ascii_only=not _can_print_marks(stdout.encoding)
        ):
            console.out(line)
    if report.has_failed(strict=strict):
        raise typer.Exit(1)


def _can_print_marks(encoding: str) -> bool:
    try:
        "✓✗⊘".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
