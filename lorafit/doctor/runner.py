"""Run checks side by side, each one guarded and on the clock."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from lorafit.doctor.check import Check, Outcome
from lorafit.doctor.probe import Probe
from lorafit.doctor.report import Finding, make_finding

_REPORT_BUG = "this is a fault of the check, not of the machine: please report it with this line"


@dataclass
class _Job:
    check: Check
    thread: threading.Thread | None = None
    outcome: Outcome | None = None
    duration_seconds: float = 0.0


def run_checks(checks: Sequence[Check], probe: Probe) -> list[Finding]:
    """Return one finding a check, in order; never raises and never waits past the timeout.

    Checks run in threads, since most of them wait for files or a subprocess. A thread that hangs
    cannot be stopped: it is left behind as a daemon and reported.
    """
    jobs = [_Job(entry) for entry in checks]
    deadline = time.monotonic() + probe.timeout_seconds
    for job in jobs:
        job.thread = threading.Thread(target=_run_job, args=(job, probe), daemon=True)
        job.thread.start()
    for job in jobs:
        assert job.thread is not None
        job.thread.join(max(0.0, deadline - time.monotonic()))
    return [_finding(job, probe.timeout_seconds) for job in jobs]


def _run_job(job: _Job, probe: Probe) -> None:
    started = time.monotonic()
    try:
        outcome = job.check.run(probe)
    except Exception as bug:  # a broken check must not take the others along
        outcome = Outcome(
            "crash", f"the check failed: {type(bug).__name__}: {bug}", fix=_REPORT_BUG
        )
    job.duration_seconds = time.monotonic() - started
    job.outcome = outcome


def _finding(job: _Job, timeout_seconds: float) -> Finding:
    outcome = job.outcome
    if outcome is not None:
        return make_finding(job.check, outcome, job.duration_seconds)
    hung = Outcome(
        "crash",
        f"no answer within {timeout_seconds:g} s",
        measured=f"more than {timeout_seconds:g} s",
        fix="a driver, network folder or busy machine may hang: try this check alone, with time",
        commands=(f"lorafit doctor --check {job.check.id} --timeout 60",),
    )
    return make_finding(job.check, hung, timeout_seconds)
