"""Runs under the output folder: what killed ones left, and checkpoints that are not whole."""

from pathlib import Path

from lorafit.doctor.check import Outcome, check, ok, skip, warn
from lorafit.doctor.probe import Probe
from lorafit.errors import LorafitError
from lorafit.training.checkpoints.checkpoint import (
    STAGING_PREFIX,
    list_checkpoints,
    verify_checkpoint,
)
from lorafit.units import GIB, format_bytes

_RUN_FILE = "run.json"
_QUICK_BYTES = GIB // 2
"""Checkpoints up to here in all are verified at once, about a second; --deep verifies the rest."""


@check(
    "runs",
    "System",
    "Earlier runs",
    affects="a run can only go on from a whole checkpoint; leftovers take space",
)
def earlier_runs(probe: Probe) -> Outcome:
    """Verify the checkpoints of the runs here, and find what killed saves left; deletes nothing."""
    runs = find_runs(probe.output_dir)
    if not runs:
        return skip(f"no runs in {probe.output_dir}")
    leftovers = [path for run in runs for path in sorted(run.glob(f"{STAGING_PREFIX}*"))]
    checkpoints = [entry for run in runs for entry in list_checkpoints(run)]
    damaged, verified, read_bytes = [], 0, 0
    for entry in checkpoints:
        read_bytes += sum(int(facts["bytes"]) for facts in entry.files.values())
        if read_bytes > _QUICK_BYTES and not probe.question.is_deep:
            break
        verified += 1
        try:
            verify_checkpoint(entry.folder)
        except LorafitError as problem:
            damaged.append(f"{entry.folder}: {problem.message}")
    measured = f"{verified - len(damaged)} of {len(checkpoints)} checkpoints verified"
    facts = f"{len(runs)} runs, {measured}"
    if verified < len(checkpoints):
        facts += " (the rest with --deep)"
    if not damaged and not leftovers:
        return ok(facts, measured=measured)
    found = [*damaged]
    if leftovers:
        size = format_bytes(sum(map(_size, leftovers)))
        found.append(f"{len(leftovers)} leftovers of killed saves hold {size}")
    return warn(
        f"{facts}; {'; '.join(found)}",
        "a run that is continued clears its own leftovers and passes damaged checkpoints over; "
        "remove those of runs that are over, unless one is running",
        *(f"rm -r {path}" for path in leftovers),
        measured=measured,
    )


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders: `folder` itself and those directly in it."""
    if not folder.is_dir():
        return []
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    return [path for path in candidates if (path / _RUN_FILE).is_file()]


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
