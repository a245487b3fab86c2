"""The run folder: whose it is, and where in a run it stands."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit.config.extension import ScheduleChange, schedule_of
from lorafit.errors import CheckpointError, UsageError
from lorafit.text import excerpt
from lorafit.training.checkpoints.checkpoint import (
    Checkpoint,
    newest_verified,
    require_run,
    verify_checkpoint,
)
from lorafit.training.checkpoints.layout import STATE_FILES
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.run_folder.fingerprint import (
    LENGTH,
    check_allowed,
    fingerprint_of,
    require_same_run,
)
from lorafit.training.run_folder.mismatch import Mismatch, Origins
from lorafit.training.run_folder.output import (
    RUN_FILE,
    check_output,
    is_run,
    permission_notes,
    require_checkpoint_folder,
)


@dataclass(frozen=True)
class ResumeChoice:
    """What a person says about continuing a run."""

    checkpoint: str | None = None
    """A checkpoint folder, `auto`, or None: an unfinished run in the folder is continued."""
    extends: bool = False
    """The run may have become longer: its length in the plan is the new one."""
    allowed: tuple[str, ...] = ()
    """Facts of the fingerprint that may differ."""
    imports: Path | None = None
    """A checkpoint of transformers' Trainer that a new run goes on from."""


@dataclass(frozen=True)
class Start:
    """Where a run begins: afresh, from a checkpoint, or not at all as it is complete."""

    run_id: str
    checkpoint: Checkpoint | None
    is_complete: bool
    reason: str
    notes: tuple[str, ...] = ()
    """What a person should know: checkpoints passed over, other versions, allowed differences."""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """Facts that differ from the recorded run, as (then, now): it takes another course."""
    record: Mapping[str, Any] | None = None
    """run.json as the attempt before left it."""
    imports: Path | None = None
    """A foreign checkpoint that is still to become this run's first one."""
    imported: Mapping[str, Any] | None = None
    """What run.json keeps of the foreign checkpoint that the run went on from."""

    @property
    def cpu_products(self) -> str | None:
        """The library of fp32 products that the run began with, where run.json says one."""
        found = (self.record or {}).get("cpu_products")
        return found if isinstance(found, str) else None

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.checkpoint.step if self.checkpoint else 0


def check_folder(plan: RunPlan) -> None:
    """Refuse an output folder that cannot be used, before anything expensive happens.

    Raises:
        StorageError: the folder is a file, holds something else, or cannot be written.
        UsageError: it is also the folder of the base model or of the data.
    """
    check_output(plan.settings, plan.source.path)


def read_run(run_dir: Path) -> dict[str, Any]:
    """Return a run's run.json.

    Raises:
        CheckpointError: there is none that can be read.
    """
    path = run_dir / RUN_FILE
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        str(record["run_id"]), dict(record["fingerprint"]), str(record["status"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(
            "cannot be read as the record of a run",
            where=str(path),
            hint="choose another --output-dir to start afresh",
        ) from None
    return record


def find_start(plan: RunPlan, choice: ResumeChoice) -> Start:
    """Return where the run begins.

    An unfinished run in the folder is continued from its newest whole checkpoint.

    Raises:
        CheckpointError: the folder or the named checkpoint belongs to a run with other settings,
            is damaged, or there is nothing to resume.
        UsageError: there is no run to extend, or a fact that cannot be allowed to differ.
    """
    run_dir = Path(plan.settings.output_dir)
    fingerprint = fingerprint_of(plan)
    allowed = check_allowed(choice.allowed, fingerprint)
    if choice.checkpoint not in (None, "auto"):
        found = _verified(run_dir, Path(str(choice.checkpoint)))
    elif is_run(run_dir):
        found = None
    elif choice.imports is not None:
        reason = f"a new run that goes on from {excerpt(str(choice.imports), 200)}"
        return Start(uuid.uuid4().hex, None, False, reason, imports=choice.imports)
    elif choice.extends:
        raise UsageError(
            f"--extend: there is no run in {excerpt(str(run_dir))} to extend",
            hint="name its folder as --output-dir, or leave --extend out to start a run",
        )
    else:
        return Start(uuid.uuid4().hex, None, False, "a new run")
    record = read_run(run_dir)
    _require_import(choice, record, run_dir)
    if choice.extends:
        _require_longer(plan, record)
        allowed |= LENGTH
    origins = (Origins.of_record(record), _origins_of(plan))
    changed = require_same_run(record["fingerprint"], fingerprint, str(run_dir), allowed, origins)
    mismatch = Mismatch(changed, *origins)
    notes = [
        f"{mismatch.note(name)}: not the same run any more"
        for name in changed
        if name not in LENGTH
    ]
    if found is not None:
        require_run(found, record["run_id"])
        reason = f"continuing from {found.folder.name}, as asked with --resume"
    elif record["status"] == "completed" and not changed:
        reason = "this run is already complete"
        return Start(record["run_id"], None, True, reason, record=record)
    else:
        found, skipped = newest_verified(run_dir, record["run_id"], STATE_FILES)
        notes += [f"checkpoint passed over: {why}" for why in skipped]
        if found is None and record.get("imported"):
            return _import_again(choice, record, run_dir, notes)
        if found is None:
            reason = "an earlier attempt left no checkpoint: starting again from step 0"
        else:
            reason = f"continuing from {found.folder.name}, the newest whole checkpoint"
    if found is not None:
        notes += [*_version_notes(found, plan), *permission_notes(found.folder)]
    return Start(record["run_id"], found, False, reason, tuple(notes), changed, record)


def _origins_of(plan: RunPlan) -> Origins:
    rows = plan.data.report.training.rows_read
    return Origins(plan.settings.data, rows, plan.settings.model)


def _require_import(choice: ResumeChoice, record: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse to import into a run that did not begin with that very checkpoint."""
    if choice.imports is None:
        return
    origin = record.get("imported") or {}
    if not isinstance(origin, dict) or origin.get("folder") != str(choice.imports.resolve()):
        raise CheckpointError(
            f"this folder holds a run that did not go on from {excerpt(str(choice.imports), 200)}",
            where=str(run_dir),
            hint="choose another --output-dir, or leave --import-hf-checkpoint out to continue it",
        )


def _import_again(
    choice: ResumeChoice, record: Mapping[str, Any], run_dir: Path, notes: list[str]
) -> Start:
    """Return the start of a run whose imported checkpoint is gone, damaged or was never written."""
    if choice.imports is None:
        raise CheckpointError(
            "this run went on from an imported checkpoint, and holds no whole one any more",
            where=str(run_dir),
            hint="give --import-hf-checkpoint FOLDER again",
        )
    reason = f"an earlier attempt left no checkpoint: going on from {excerpt(str(choice.imports))}"
    return Start(
        record["run_id"], None, False, reason, tuple(notes), record=record, imports=choice.imports
    )


def _verified(run_dir: Path, folder: Path) -> Checkpoint:
    require_checkpoint_folder(str(folder))
    checkpoint = verify_checkpoint(folder, STATE_FILES)
    if folder.resolve().parent != run_dir.resolve():
        raise CheckpointError(
            f"{folder} lies outside of --output-dir {run_dir}",
            hint=f"continue the run in its own folder: --output-dir {folder.parent}",
        )
    return checkpoint


def _require_longer(plan: RunPlan, record: Mapping[str, Any]) -> None:
    before, now = record["fingerprint"].get("total_steps"), plan.schedule.total_steps
    if isinstance(before, int) and now < before:
        raise UsageError(
            f"--extend: the run is {before} steps long already, and this asks for {now}",
            hint="--extend gives the whole length, the steps that are done included",
        )


def machine_facts(plan: RunPlan) -> dict[str, Any]:
    """Return what decides the last bits of a run beside its settings, for its checkpoints."""
    import torch

    from lorafit.report.run_record import installed_versions

    facts: dict[str, Any] = {"versions": installed_versions(), "device": plan.device.name}
    if plan.settings.method != "sft":
        facts["versions"]["trl"] = metadata.version("trl")
    if plan.device.kind == "cpu":
        # Sums over another number of threads have another order.
        facts["num_threads"] = torch.get_num_threads()
    return facts


def _version_notes(checkpoint: Checkpoint, plan: RunPlan) -> list[str]:
    """Return how the machine differs from the one that wrote the checkpoint (promise R2)."""
    facts, now = checkpoint.facts, machine_facts(plan)
    before, versions = facts.get("versions"), now["versions"]
    changed = []
    if isinstance(before, dict):
        changed = [
            f"{excerpt(name)} {excerpt(str(before[name]))} -> {versions.get(name)}"
            for name in sorted(before)
            if before[name] != versions.get(name)
        ]
    changed += [
        f"{title} {excerpt(str(facts[name]))} -> {now.get(name)}"
        for name, title in (("device", "device"), ("num_threads", "CPU threads"))
        if name in facts and facts[name] != now.get(name)
    ]
    if not changed:
        return []
    return [
        f"since {checkpoint.folder.name} was written, this changed: {', '.join(changed)}; the run "
        "goes on, but not bit for bit as it would have"
    ]


def schedule_change(plan: RunPlan, start: Start) -> ScheduleChange | None:
    """Return what a longer run does to the learning rate; None where the length is the same."""
    if start.record is None or not LENGTH & start.changed.keys():
        return None
    try:
        old = schedule_of(start.record["plan"]["schedule"])
    except (KeyError, TypeError):
        return None
    return ScheduleChange(old, plan.schedule, plan.settings, start.step)
