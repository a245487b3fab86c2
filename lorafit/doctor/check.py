"""What a check is, what it finds, and the registry: a check is one decorated function.

    @check("disk.output", "Disk", "Output folder", affects="checkpoints cannot be saved")
    def output_folder(probe: Probe) -> Outcome:
        ...
        return ok("outputs is writable")

An exception in a check is a finding of status `crash`, never a traceback.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lorafit.doctor.probe import Probe
from lorafit.errors import UsageError
from lorafit.text import nearest

Status = Literal["ok", "warn", "error", "skip", "crash"]


@dataclass(frozen=True)
class Outcome:
    """What a check saw: its status, the facts, and how to put it right."""

    status: Status
    detail: str
    """The facts as a sentence; for `skip` the reason."""
    measured: str | None = None
    required: str | None = None
    fix: str | None = None
    """What to do, in words."""
    commands: tuple[str, ...] = ()
    """Lines to paste into a shell."""


@dataclass(frozen=True)
class Check:
    """One check: where it belongs, what it protects, and the function that does it."""

    id: str
    group: str
    title: str
    affects: str
    """What goes wrong when this is not right; printed with every warning and error."""
    run: Callable[[Probe], Outcome]
    docs_url: str | None = None


GROUPS = ("Python", "Packages", "Device", "System", "Configuration", "What you asked about")
"""The groups, in the order in which they are reported."""

CHECKS: dict[str, Check] = {}
"""Every registered check by id, in the order of registration."""


def check(
    check_id: str, group: str, title: str, *, affects: str, docs_url: str | None = None
) -> Callable[[Callable[[Probe], Outcome]], Callable[[Probe], Outcome]]:
    """Register the decorated function as a check."""

    def register(run: Callable[[Probe], Outcome]) -> Callable[[Probe], Outcome]:
        assert check_id not in CHECKS, check_id
        CHECKS[check_id] = Check(check_id, group, title, affects, run, docs_url)
        return run

    return register


def ok(detail: str, *, measured: str | None = None, required: str | None = None) -> Outcome:
    """Return the outcome of a check that passed."""
    return Outcome("ok", detail, measured, required)


def skip(reason: str) -> Outcome:
    """Return the outcome of a check that does not apply or could not be made here."""
    return Outcome("skip", reason)


def warn(
    detail: str,
    fix: str,
    *commands: str,
    measured: str | None = None,
    required: str | None = None,
) -> Outcome:
    """Return an outcome that does not stop training but should be known."""
    return Outcome("warn", detail, measured, required, fix, commands)


def untried(what: str, check_id: str, late: Exception) -> Outcome:
    """Return the outcome of a check whose proof took longer than there was time for."""
    return warn(
        f"{what}: {late}",
        "the machine may be busy: try this check alone, with time",
        f"lorafit doctor --check {check_id} --timeout 60",
    )


def error(
    detail: str,
    fix: str,
    *commands: str,
    measured: str | None = None,
    required: str | None = None,
) -> Outcome:
    """Return an outcome with which training fails."""
    return Outcome("error", detail, measured, required, fix, commands)


def load_checks() -> dict[str, Check]:
    """Return all checks by group, in the order in which they are reported."""
    import lorafit.doctor.checks  # noqa: F401  # importing registers them

    # Stable: within a group the order of the modules in `lorafit.doctor.checks` stays.
    ordered = sorted(CHECKS.items(), key=lambda item: GROUPS.index(item[1].group))
    return dict(ordered)


def select_checks(wanted: list[str]) -> list[Check]:
    """Return the checks named by id or by group prefix (`pkg`); all of them for an empty list.

    Raises:
        UsageError: no check has that name; the message has the nearest.
    """
    checks = load_checks()
    if not wanted:
        return list(checks.values())
    chosen: dict[str, Check] = {}
    for name in wanted:
        matches = {
            check_id: entry
            for check_id, entry in checks.items()
            if check_id == name or check_id.startswith(f"{name}.")
        }
        if not matches:
            guess = nearest(name, checks)
            meant = f"; did you mean {guess}?" if guess else ""
            raise UsageError(
                f"there is no check {name!r}{meant}",
                where="--check",
                hint="`lorafit doctor --list` shows every check",
            )
        chosen |= matches
    return list(chosen.values())
