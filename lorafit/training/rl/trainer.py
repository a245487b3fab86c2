"""TRL's trainers with lorafit's optimizer, checkpoints and records. All TRL code is behind here.

The step is TRL's: answers, rewards, advantages and loss (GRPO), or log-probabilities and margin
(DPO). What is kept of a run, when it stops and how it goes on is lorafit's, as for sft.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from lorafit.config.schema import Settings
from lorafit.data.encoding import encode_prompt
from lorafit.training.checkpoints.checkpoint import write_checkpoint
from lorafit.training.checkpoints.retention import prune_checkpoints
from lorafit.training.rl.prepare import beta_of
from lorafit.training.run_trainer import RunTrainer

if TYPE_CHECKING:
    from peft import PeftModel

# TRL's names for what a record keeps, by ours.
_FIGURES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "completion_length": "completions/mean_length",
    "reward_margin": "rewards/margins",
    "reward_accuracy": "rewards/accuracies",
}


class _RunMixin(RunTrainer):
    """What both trainers do the same way; it comes before TRL's trainer in the bases."""

    _metrics: Any

    def __init__(self, *, model: "PeftModel", **arguments: Any) -> None:
        """Prepare a run; the other `arguments` are those of `RunTrainer` and of TRL's trainer."""
        self._tokens = [0, 0]
        # TRL makes the adapters of a quantized base bf16, and adds a copy of the adapter as the
        # reference. Here adapters are fp32 masters, and the reference is the model with its
        # adapter off, which is what training started from: LoRA's B is zero then.
        kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, **arguments)
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
        model.set_adapter("default")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in kept)
            if name in kept:
                parameter.data = kept[name]

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def _expects_gradients(self) -> bool:
        # Answers that are all rewarded the same teach nothing, and such a step may come first.
        return self._last is not None and self._last.grad_norm > 0

    def count_tokens(self, tokens: int, learnt: int) -> None:
        """Add to the tokens of the step."""
        self._tokens[0] += tokens
        self._tokens[1] += learnt

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the log of a step into a record; the summary at the end is not one."""
        if "loss" not in logs:
            return
        means = {name: fmean(values) for name, values in self._metrics["train"].items() if values}
        self._metrics["train"].clear()
        figures: dict[str, Any] = {
            ours: means[theirs] for ours, theirs in _FIGURES.items() if theirs in means
        }
        by_function = {
            name.split("/")[1]: value
            for name, value in means.items()
            if name.startswith("rewards/") and name.endswith("/mean")
        }
        record = self._record_step(logs, *self._tokens, rewards=by_function or None, **figures)
        self._hand_out(record)
        if self._settings.method == "dpo":
            # GRPO's loss is about 0 by construction, and says nothing about health.
            self._watch_loss(record)

    def restart_clock(self) -> None:
        """Begin the time, the tokens and the memory peak of the next step."""
        super().restart_clock()
        self._tokens = [0, 0]

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*arguments, **options)  # type: ignore[misc]
        self.restart_clock()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step, run_dir = self.state.global_step, Path(self.args.output_dir)
        facts = self._facts_now()
        folder = write_checkpoint(run_dir, step, self._run_id, self._write_state, facts, self._note)
        prune_checkpoints(run_dir, self._settings.save_total_limit, self._run_id)
        for observer in self._observers:
            observer.on_checkpoint(step, folder)


class _PromptOrder(torch.utils.data.Sampler[int]):
    """Prompts in an order of their own each epoch, each as often as it is answered.

    TRL's sampler goes on from a generator that no checkpoint holds; this order follows from seed
    and epoch, so that a run that goes on sees the prompts that it would have seen. Prompts that do
    not fill a micro-batch at the end of an epoch are left out, other ones in each epoch.
    """

    def __init__(
        self,
        *,
        num_prompts: int,
        prompts_per_micro_batch: int,
        repeats: int,
        accumulation: int,
        seed: int,
        steps_done: Callable[[], int],
    ) -> None:
        """Order `num_prompts`; `steps_done` tells at the start of an epoch which one it is."""
        self._num_prompts = num_prompts
        self._per_micro_batch = prompts_per_micro_batch
        self._repeats = repeats
        self._steps_per_epoch = -(-(num_prompts // prompts_per_micro_batch) // accumulation)
        self._seed = seed
        self._steps_done = steps_done

    def __len__(self) -> int:
        whole = self._num_prompts // self._per_micro_batch * self._per_micro_batch
        return whole * self._repeats

    def __iter__(self) -> Iterator[int]:
        epoch = self._steps_done() // self._steps_per_epoch
        generator = torch.Generator().manual_seed(self._seed + epoch)
        order = torch.randperm(self._num_prompts, generator=generator).tolist()
        for index in order[: len(self) // self._repeats]:
            yield from [index] * self._repeats


class LoraGrpoTrainer(_RunMixin, GRPOTrainer):  # type: ignore[misc]  # TRL is not typed
    """GRPO: answers are written, rewarded and compared within each prompt."""

    def _get_train_sampler(self, dataset: Any = None) -> "_PromptOrder":
        return _PromptOrder(
            num_prompts=len(self.train_dataset),
            prompts_per_micro_batch=self.args.per_device_train_batch_size // self.num_generations,
            repeats=self.num_generations,
            accumulation=self.args.gradient_accumulation_steps,
            seed=self.args.seed,
            steps_done=lambda: self.state.global_step,
        )

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the ids of prompts as the model reads them wherever lorafit generates."""
        return [encode_prompt(self.processing_class, prompt) for prompt in prompts], None, {}

    def _generate_single_turn(self, *arguments: Any, **options: Any) -> Any:
        # In training mode there would be dropout in what is written, and checkpointing would
        # leave the cache of keys and values unused.
        self.model.eval()
        try:
            return super()._generate_single_turn(*arguments, **options)
        finally:
            self.model.train()

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        learnt = int(found["completion_mask"].sum())
        self.count_tokens(int(found["prompt_mask"].sum()) + learnt, learnt)
        return found


class LoraDpoTrainer(_RunMixin, DPOTrainer):  # type: ignore[misc]  # TRL is not typed
    """DPO: the margin between a better and a worse answer grows."""

    def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
        """Return the rows as they are: they are tokenized already, as for sft."""
        return dataset

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """Count the tokens, and compute TRL's loss."""
        self.count_tokens(int(inputs["attention_mask"].sum()), int(inputs["completion_mask"].sum()))
        return super().compute_loss(model, inputs, *arguments, **options)


def trainer_arguments(
    settings: Settings,
    *,
    run_dir: Path,
    micro_batch: int,
    accumulation: int,
    total_steps: int,
    warmup_steps: int,
    dtype: torch.dtype,
    device_kind: str,
) -> Any:
    """Translate settings into TRL's arguments; `micro_batch` counts rows of the data."""
    shared: dict[str, Any] = {
        "output_dir": str(run_dir),
        "gradient_accumulation_steps": accumulation,
        "max_steps": total_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        # As in training/trainer: only float16 needs autocast, and the layers that are to be
        # checkpointed were told so when the adapter was added.
        "fp16": dtype == torch.float16,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": device_kind == "cpu",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "dataloader_num_workers": settings.dataloader_num_workers,
        "dataloader_pin_memory": device_kind == "cuda",
        "remove_unused_columns": False,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "report_to": [],
        "disable_tqdm": True,
        "disable_dropout": settings.lora_dropout == 0,
        "beta": beta_of(settings),
    }
    if settings.method == "dpo":
        return DPOConfig(
            **shared, per_device_train_batch_size=micro_batch, max_length=settings.max_length
        )
    return GRPOConfig(
        **shared,
        per_device_train_batch_size=micro_batch * settings.num_generations,
        # Answers are written for one micro-batch at a time: the cache stays small, and nothing
        # that was written is left over between steps.
        steps_per_generation=1,
        num_generations=settings.num_generations,
        max_completion_length=settings.max_completion_length,
        temperature=settings.temperature,
        log_completions=False,
    )
