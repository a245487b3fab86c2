"""Making a checkpoint of transformers' Trainer and PEFT the first one of a run."""

import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from lorafit.config.schedule import learning_rate_at
from lorafit.errors import StorageError
from lorafit.model.adapter_folder import CONFIG_FILE
from lorafit.report.run_record import RunRecord
from lorafit.text import excerpt
from lorafit.training.checkpoints import layout, state
from lorafit.training.checkpoints.checkpoint import read_manifest, write_checkpoint
from lorafit.training.foreign.hf_compare import Fact, HfImport, examine_hf_checkpoint
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.run_folder.fingerprint import fingerprint_of
from lorafit.training.run_folder.folder import Start, machine_facts


def take_over(plan: RunPlan, start: Start, allowed: Collection[str] = ()) -> Start:
    """Make a foreign checkpoint this run's first one; return the start from there.

    The record comes first, so that a kill in between leaves a run that the same command begins
    again.

    Raises:
        CheckpointError: as `examine_hf_checkpoint`.
        StorageError: the folder cannot be written.
    """
    assert start.imports is not None
    found = examine_hf_checkpoint(plan, start.imports, allowed)
    run_dir = Path(plan.settings.output_dir)
    facts = found.as_dict()
    try:
        record = RunRecord(
            run_dir, start.run_id, {"fingerprint": fingerprint_of(plan), "imported": facts}
        )
        record.close("interrupted", {})
    except OSError as problem:
        raise StorageError(
            f"the run could not be recorded: {problem.strerror or problem}", where=str(run_dir)
        ) from problem
    folder = write_checkpoint(
        run_dir,
        found.checkpoint.step,
        start.run_id,
        lambda staging: _write(plan, found, staging),
        {**machine_facts(plan), "imported_from": facts["folder"]},
    )
    counts = _count_standings(found.facts)
    note = f"{folder.name} was made of {excerpt(facts['folder'], 200)}: {counts}"
    return replace(
        start, checkpoint=read_manifest(folder), imported=facts, notes=(*start.notes, note)
    )


def _count_standings(facts: tuple[Fact, ...]) -> str:
    standings = [fact.standing for fact in facts]
    order = dict.fromkeys(("taken over", "same", "differs", "unknown", "left out"))
    return ", ".join(f"{standings.count(name)} {name}" for name in order if name in standings)


def _write(plan: RunPlan, found: HfImport, folder: Path) -> None:
    """Write what `Snapshot.write` would have written of a run at this step."""
    from safetensors.torch import save_file
    from transformers import TrainerState, set_seed

    checkpoint, settings = found.checkpoint, plan.settings
    weights = {name: tensor.float() for name, tensor in checkpoint.weights.items()}
    save_file(weights, folder / layout.ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(checkpoint.folder / CONFIG_FILE, folder / CONFIG_FILE)
    state.save_optimizer_state(found.optimizer, folder)
    groups = len(found.optimizer["param_groups"])
    rate = learning_rate_at(plan.schedule, settings, checkpoint.step)
    schedule = {
        "base_lrs": [settings.learning_rate] * groups,
        "last_epoch": checkpoint.step,
        "_step_count": checkpoint.step + 1,
        "_last_lr": [rate] * groups,
        "lr_lambdas": [None] * groups,
    }
    state.save_plain(schedule, folder / layout.SCHEDULER_FILE)
    # Its own numbers cannot go on here; the steps to come must not repeat those of a first step.
    set_seed((settings.seed + checkpoint.step) % 2**32)
    state.save_rng(folder)
    if plan.dtype.value == "float16":
        fresh = torch.amp.GradScaler("cpu").state_dict()
        state.save_plain(checkpoint.scaler or fresh, folder / layout.SCALER_FILE)
    counters = TrainerState(
        global_step=checkpoint.step,
        epoch=checkpoint.step / plan.schedule.steps_per_epoch,
        max_steps=plan.schedule.total_steps,
        # As `training_arguments` has them, which the Trainer compares.
        train_batch_size=plan.batch.effective_batch_size,
        logging_steps=1,
        save_steps=settings.save_steps,
        eval_steps=settings.eval_steps,
    )
    counters.save_to_json(str(folder / layout.TRAINER_STATE))
