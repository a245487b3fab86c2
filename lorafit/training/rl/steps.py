"""The steps of a grpo or dpo run: TRL's trainer put together, trained, and asked to stop."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.data.rl_rows import MethodData
from lorafit.errors import DataError, MemoryFitError, RunInterruptedError
from lorafit.report.records import RunObserver
from lorafit.text import excerpt
from lorafit.training.folder import Start, machine_facts
from lorafit.training.oom import MemoryRecovery, is_out_of_memory
from lorafit.training.plan import RunPlan
from lorafit.training.rl.rewards import load_reward_functions
from lorafit.training.signals import StopRequest

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

Reward = Callable[..., list[float]]


def load_rewards(plan: RunPlan) -> list[Reward]:
    """Return the run's reward functions; the person's file is run here, and for grpo only.

    Raises:
        InputError: the file fails as it runs.
        DataError: there are fewer prompts than a micro-batch takes.
    """
    if plan.reward_file is None:
        return []
    return [_with_fields(plan, reward) for reward in load_reward_functions(plan.reward_file)]


def _with_fields(plan: RunPlan, reward: Reward) -> Reward:
    """Give a reward function the other fields of the rows that its prompts came from."""
    assert isinstance(plan.data, MethodData)
    rows = plan.data.rows
    names = sorted({name for row in rows for name in row if name != "prompt"})

    def rewards(
        prompts: Sequence[Any], completions: Sequence[Any], row: Sequence[int], **_: Any
    ) -> list[float]:
        fields = {name: [rows[index].get(name) for index in row] for name in names}
        return reward(prompts=prompts, completions=completions, **fields)

    rewards.__name__ = reward.__name__
    return rewards


def take_method_steps(
    plan: RunPlan,
    start: Start,
    model: "PeftModel",
    device: "torch.device",
    observers: Sequence[RunObserver],
    note: Callable[[str], None],
    recovery: MemoryRecovery,
    stop: StopRequest,
    rewards: Sequence[Reward],
) -> None:
    """Take all steps of a grpo or dpo run.

    Raises:
        DataError: there are fewer rows than a micro-batch takes.
        DivergedError: loss or gradient became non-finite.
        InputError: a reward function failed, or returned what cannot be used.
        MemoryFitError: memory ran out.
        RunInterruptedError: a signal asked to stop, and a checkpoint was saved.
    """
    settings, batch = plan.settings, plan.batch
    assert isinstance(plan.data, MethodData)
    rows, micro_batch = plan.data.rows, batch.per_device_train_batch_size
    if len(rows) < micro_batch:
        raise DataError(
            f"holds {len(rows)} rows, fewer than the micro-batch of {micro_batch}",
            where=str(settings.data),
            hint=f"--per-device-train-batch-size {len(rows)} at most",
        )
    trainer = _trainer(plan, start, model, device, observers, note, recovery, stop, rewards)
    stop.begin_saving()
    for observer in observers:
        observer.on_start(plan.schedule.total_steps, start.step)
    try:
        trainer.train(
            resume_from_checkpoint=str(start.checkpoint.folder) if start.checkpoint else None
        )
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise _out_of_memory(plan, failure) from failure
    finally:
        for observer in observers:
            observer.on_end()
    step = trainer.state.global_step
    if stop.received is not None and step < plan.schedule.total_steps:
        raise RunInterruptedError(
            f"{stop.received.name} received: saved at step {step} of {plan.schedule.total_steps}",
            hint="run the same command again to go on from there",
        )


def _trainer(
    plan: RunPlan,
    start: Start,
    model: "PeftModel",
    device: "torch.device",
    observers: Sequence[RunObserver],
    note: Callable[[str], None],
    recovery: MemoryRecovery,
    stop: StopRequest,
    rewards: Sequence[Reward],
) -> Any:
    import torch
    from datasets import Dataset

    _quiet_trl()
    from lorafit.training.rl import trainer as trl_trainers

    settings, batch = plan.settings, plan.batch
    assert isinstance(plan.data, MethodData)
    arguments = trl_trainers.trainer_arguments(
        settings,
        run_dir=Path(settings.output_dir),
        micro_batch=batch.per_device_train_batch_size,
        accumulation=batch.gradient_accumulation_steps,
        total_steps=plan.schedule.total_steps,
        warmup_steps=plan.schedule.warmup_steps,
        dtype=getattr(torch, plan.dtype.value),
        device_kind=device.type,
    )
    tokenizer = plan.tokenizer
    # Padding is masked everywhere; the id only has to be one that the model has.
    tokenizer.pad_token_id = plan.pad.token_id
    options: dict[str, Any] = {
        "model": model,
        "settings": settings,
        "run_id": start.run_id,
        "observers": observers,
        "stop": stop,
        "recovery": recovery,
        "facts": machine_facts(plan),
        "note": note,
        "args": arguments,
        "processing_class": tokenizer,
    }
    if settings.method == "dpo":
        rows = Dataset.from_list(list(plan.data.rows))
        return trl_trainers.LoraDpoTrainer(train_dataset=rows, **options)
    prompts = [{"prompt": row["prompt"], "row": index} for index, row in enumerate(plan.data.rows)]
    return trl_trainers.LoraGrpoTrainer(
        train_dataset=Dataset.from_list(prompts), reward_funcs=list(rewards), **options
    )


def _quiet_trl() -> None:
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"trl\..*")


def _out_of_memory(plan: RunPlan, failure: BaseException) -> MemoryFitError:
    first_line = (str(failure) or type(failure).__name__).splitlines()[0]
    rows = plan.batch.per_device_train_batch_size
    smaller = max(1, rows // 2)
    advice = f"--per-device-train-batch-size {smaller}, " if smaller < rows else ""
    if plan.settings.method == "grpo":
        advice += "a lower --num-generations or --max-completion-length, "
    return MemoryFitError(
        f"ran out of memory with micro-batch {rows}: {excerpt(first_line, 300)}",
        hint=f"{advice}--gradient-checkpointing and --quantization nf4 save memory; the last "
        "checkpoint is intact",
    )
