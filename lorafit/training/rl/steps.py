"""The steps of a grpo or dpo run: TRL's trainer put together, trained, and asked to stop."""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.data.rl_rows import MethodData
from lorafit.errors import DataError, MemoryFitError
from lorafit.report.records import RunObserver
from lorafit.text import excerpt
from lorafit.training.guard.oom import MemoryRecovery, is_out_of_memory
from lorafit.training.guard.signals import StopRequest
from lorafit.training.loop import train_to_end
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.rl.rewards import load_reward_functions
from lorafit.training.run_folder.folder import Start, machine_facts

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


@dataclass(frozen=True)
class MethodRun:
    """A grpo or dpo run, ready to take its steps."""

    plan: RunPlan
    start: Start
    model: "PeftModel"
    device: "torch.device"
    rewards: Sequence[Reward]
    """As `load_rewards` returns them."""
    observers: Sequence[RunObserver]
    note: Callable[[str], None]
    """Records and tells what a person should know."""
    recovery: MemoryRecovery
    stop: StopRequest


def take_method_steps(run: MethodRun) -> None:
    """Take all steps of a grpo or dpo run.

    Raises:
        DataError: there are fewer rows than a micro-batch takes.
        DivergedError: loss or gradient became non-finite.
        InputError: a reward function failed, or returned what cannot be used.
        MemoryFitError: memory ran out.
        RunInterruptedError: a signal asked to stop, and a checkpoint was saved.
    """
    plan = run.plan
    assert isinstance(plan.data, MethodData)
    rows, micro_batch = plan.data.rows, plan.batch.per_device_train_batch_size
    if len(rows) < micro_batch:
        raise DataError(
            f"holds {len(rows)} rows, fewer than the micro-batch of {micro_batch}",
            where=str(plan.settings.data),
            hint=f"--per-device-train-batch-size {len(rows)} at most",
        )
    trainer = _trainer(run, plan.data)
    try:
        train_to_end(trainer, run.start, plan.schedule.total_steps, run.observers, run.stop)
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise _out_of_memory(plan, failure) from failure


def _trainer(run: MethodRun, data: MethodData) -> Any:
    import torch
    from datasets import Dataset

    _quiet_trl()
    from lorafit.training.rl import trainer as trl_trainers

    plan, settings, batch = run.plan, run.plan.settings, run.plan.batch
    arguments = trl_trainers.trainer_arguments(
        settings,
        run_dir=Path(settings.output_dir),
        micro_batch=batch.per_device_train_batch_size,
        accumulation=batch.gradient_accumulation_steps,
        total_steps=plan.schedule.total_steps,
        warmup_steps=plan.schedule.warmup_steps,
        dtype=getattr(torch, plan.dtype.value),
        device_kind=run.device.type,
    )
    tokenizer = plan.tokenizer
    # Padding is masked everywhere; the id only has to be one that the model has.
    tokenizer.pad_token_id = plan.pad.token_id
    options: dict[str, Any] = {
        "model": run.model,
        "settings": settings,
        "run_id": run.start.run_id,
        "observers": run.observers,
        "stop": run.stop,
        "recovery": run.recovery,
        "facts": machine_facts(plan),
        "note": run.note,
        "args": arguments,
        "processing_class": tokenizer,
    }
    if settings.method == "dpo":
        rows = Dataset.from_list(list(data.rows))
        return trl_trainers.LoraDpoTrainer(train_dataset=rows, **options)
    prompts = [{"prompt": row["prompt"], "row": index} for index, row in enumerate(data.rows)]
    return trl_trainers.LoraGrpoTrainer(
        train_dataset=Dataset.from_list(prompts), reward_funcs=list(run.rewards), **options
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
        hint=f"{advice}--gradient-checkpointing and --quantization nf4 save memory; every "
        "checkpoint written so far is intact",
    )
