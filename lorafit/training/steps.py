"""The steps of a run: the trainer put together from its plan, and trained to the end."""

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.report.overfitting import ValidationWatch
from lorafit.report.records import RunObserver
from lorafit.report.run_record import NoRecord, RunRecord
from lorafit.training.guard.blame import row_source
from lorafit.training.guard.calibrate import calibrate_if_new
from lorafit.training.guard.oom import Checkpointing, MemoryRecovery, Shrink
from lorafit.training.guard.signals import StopRequest
from lorafit.training.loop import train_to_end
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.processes.distributed import World
from lorafit.training.recording import note
from lorafit.training.rl.steps import MethodRun, Reward, take_method_steps
from lorafit.training.run_folder.folder import Start, machine_facts

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import TrainingArguments


def take_steps(
    plan: RunPlan,
    start: Start,
    model: "PeftModel",
    device: "torch.device",
    observers: Sequence[RunObserver],
    record: RunRecord | NoRecord,
    stop: StopRequest,
    validation: ValidationWatch | None,
    world: World,
    rewards: Sequence[Reward] = (),
) -> str | None:
    """Take the steps; return why samples are missing, if they are.

    Every process of the run comes here; what only the first one does, it does through `observers`,
    `record` and `validation`, which the others have not.
    """
    from lorafit.model.build import attention_context
    from lorafit.training.processes.sharding import passes_of
    from lorafit.training.samples import Sampler
    from lorafit.training.trainer import LoraTrainer

    say = partial(note, record, observers)
    if plan.settings.method != "sft":
        with attention_context(plan.settings):
            recovery = _memory_recovery(plan, model, device, record, say, world)
            take_method_steps(
                MethodRun(plan, start, model, device, rewards, observers, say, recovery, stop)
            )
        return None
    sampler = Sampler(plan, start.step) if world.is_main else None

    def after_evaluation(step: int) -> bool:
        if sampler is not None:
            sampler.write(model, step)
        return validation is not None and validation.stop_reason is not None

    arguments = _arguments(plan, device)
    pad, chunked = plan.pad.token_id, plan.model.chunked_loss.value
    with attention_context(plan.settings):
        if world.is_main and not plan.is_sharded:
            calibrate_if_new(plan, model, device, say)
        passes = passes_of(model, world, is_sharded=plan.is_sharded)
        trainer = LoraTrainer(
            settings=plan.settings,
            run_id=start.run_id,
            observers=observers,
            stop=stop,
            recovery=_memory_recovery(
                plan, model, device, record, say, world, can_recover=passes.recovers
            ),
            facts=machine_facts(plan),
            row_source=lambda row: row_source(plan.data.train, row),
            note=say,
            after_evaluation=after_evaluation,
            world=world,
            passes=passes,
            collate=plan.batching.collator(pad, locate_targets=chunked),
            eval_limits=plan.batching.eval_limits,
            model=model,
            args=arguments,
            train_dataset=plan.batching.dataset(plan.data.train),
            eval_dataset=plan.data.validation,
        )
        train_to_end(trainer, start, plan.schedule.total_steps, observers, stop)
    return None if sampler is None else sampler.failure


def _arguments(plan: RunPlan, device: "torch.device") -> "TrainingArguments":
    """Return what transformers' Trainer is told of the plan."""
    import torch

    from lorafit.training.arguments import training_arguments

    return training_arguments(
        plan.settings,
        run_dir=Path(plan.settings.output_dir),
        # Of all devices together: each takes its share.
        rows_per_step=plan.batch.effective_batch_size,
        warmup_steps=plan.schedule.warmup_steps,
        dtype=getattr(torch, plan.dtype.value),
        device_kind=device.type,
        compile_model=plan.compiles_model,
        validate=plan.data.validation is not None,
    )


def _memory_recovery(
    plan: RunPlan,
    model: "PeftModel",
    device: "torch.device",
    record: RunRecord | NoRecord,
    say: Callable[[str], None],
    world: World,
    *,
    can_recover: bool = True,
) -> MemoryRecovery:
    """Return what a step does when memory runs out; each shrinking is recorded and told.

    Without `can_recover` it ends the run, whatever `on_oom` says.
    """
    from lorafit.model.build import checkpoint_layers, decoder_layers

    base = model.get_base_model()
    settings = plan.settings
    num_layers = len(decoder_layers(base))
    planned = settings.checkpointed_layers or num_layers

    def tell(shrink: Shrink) -> None:
        with contextlib.suppress(OSError):
            record.add(memory_recoveries=[*record.fact("memory_recoveries"), shrink.as_dict()])
        say(shrink.sentence())

    return MemoryRecovery(
        limits=plan.batching.limits,
        eval_batch_size=plan.eval_batch_size,
        device=device,
        checkpointing=Checkpointing(
            planned if settings.gradient_checkpointing else 0,
            num_layers,
            lambda count: checkpoint_layers(base, count),
        ),
        predicted_bytes=plan.predicted_peak_bytes,
        recovers=settings.on_oom == "recover" and can_recover,
        on_shrink=tell,
        any_process=world.any,
    )
