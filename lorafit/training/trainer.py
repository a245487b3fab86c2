"""transformers' Trainer with lorafit's step, checkpoints and records.

The loop, accelerate and the schedule are the library's. What a step computes comes from
`lorafit.model.step`, so that the memory tracer runs the same code.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments

from lorafit.config.schema import Settings
from lorafit.errors import CheckpointError, DivergedError
from lorafit.evaluation.loss import evaluate_loss
from lorafit.model.step import clip_gradients, count_supervised, make_optimizer, micro_batch_loss
from lorafit.report.records import RunObserver, StepRecord
from lorafit.training import state
from lorafit.training.checkpoint import prune_checkpoints, write_checkpoint
from lorafit.training.memory_use import memory_in_use, reset_peak
from lorafit.training.signals import StopRequest

if TYPE_CHECKING:
    from torch import nn


class LoraTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """A Trainer that computes, saves and reports the way this package promises."""

    def __init__(
        self,
        *,
        settings: Settings,
        run_id: str,
        observers: Sequence[RunObserver],
        stop: StopRequest,
        eval_batch_size: int,
        **arguments: Any,
    ) -> None:
        self._settings = settings
        self._run_id = run_id
        self._observers = observers
        self._stop = stop
        self._eval_batch_size = eval_batch_size
        self._step_tokens = (0, 0)
        self._step_started = time.perf_counter()
        self._pending: StepRecord | None = None
        super().__init__(**arguments)
        self.loss_is_scaled_for_ga = True
        self.add_callback(_Flow(self, stop))

    # -- One step: the functions of model/step.py ------------------------------------------

    def create_optimizer(self, model: "nn.Module | None" = None) -> torch.optim.Optimizer:
        """Create the optimizer over the trainable parameters."""
        self.optimizer: torch.optim.Optimizer
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.model if model is None else model, self._settings)
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """Draw the micro-batches of one step and count their tokens."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        self._step_tokens = (tokens, sum(count_supervised(batch["labels"]) for batch in batches))
        return batches, num_items

    def compute_loss(
        self,
        model: "nn.Module",
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the share of this micro-batch in the token mean of the step."""
        assert num_items_in_batch is not None
        assert not return_outputs
        smoothing = self._settings.label_smoothing_factor
        loss = micro_batch_loss(model, inputs, num_items_in_batch, smoothing)
        # DDP averages gradients over processes, but the divisor already counts all of them.
        return loss * self.accelerator.num_processes if self.accelerator.num_processes > 1 else loss

    def _clip_grad_norm(self, model: "nn.Module") -> torch.Tensor:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.accelerator.unscale_gradients()
        return clip_gradients(parameters, self._settings.max_grad_norm)

    def _get_grad_norm(self, model: "nn.Module", grad_norm: Any = None) -> float:
        """Return the gradient norm; refuse to update from one that is not finite (R6)."""
        if grad_norm is None:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            grad_norm = torch.nn.utils.get_total_norm(gradients)
        norm = float(grad_norm)
        loss_is_finite = bool(torch.isfinite(self._tr_loss))
        # A loss scaler (float16) skips an overflowed update and lowers the scale: normal work.
        skips_overflow = self.accelerator.scaler is not None
        if not loss_is_finite or not (math.isfinite(norm) or skips_overflow):
            self._stop_diverged(norm)
        return norm

    def _stop_diverged(self, norm: float) -> None:
        step = self.state.global_step + 1
        raise DivergedError(
            f"step {step}: loss {float(self._tr_loss):g}, gradient norm {norm:g}; "
            "the update was not applied",
            hint=f"learning_rate was {self._get_learning_rate():g}: try a lower one, more warm-up, "
            "or --compute-dtype float32; the last checkpoint is intact",
        )

    # -- Validation ------------------------------------------------------------------------

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Run validation over the whole validation set."""
        step = self.state.global_step

        def progress(done: int, total: int) -> None:
            for observer in self._observers:
                observer.on_evaluation(step, done, total)

        report = evaluate_loss(
            self.model,
            self.eval_dataset,
            self.data_collator,
            self._eval_batch_size,
            self.args.device,
            progress,
        )
        metrics = {"eval_loss": report.loss}
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    # -- Records ---------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the Trainer's log of a step into a record; the summary at the end is not one."""
        if "loss" not in logs:
            return
        seconds = time.perf_counter() - self._step_started
        tokens, supervised = self._step_tokens
        memory = memory_in_use(self.args.device)
        self._pending = StepRecord(
            step=self.state.global_step,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=float(logs["grad_norm"]),
            epoch=float(self.state.epoch or 0.0),
            tokens=tokens,
            supervised_tokens=supervised,
            tokens_per_second=tokens / seconds,
            seconds=seconds,
            memory_allocated_bytes=memory.allocated_bytes,
            memory_reserved_bytes=memory.reserved_bytes,
        )
        if not self.control.should_evaluate:
            self.publish(None)

    def publish(self, validation_loss: float | None) -> None:
        """Hand the step that is waiting for its validation loss to the observers."""
        record, self._pending = self._pending, None
        if record is None:
            return
        if validation_loss is not None:
            record = StepRecord(**{**record.as_dict(), "validation_loss": validation_loss})
        for observer in self._observers:
            observer.on_step(record)

    def restart_clock(self) -> None:
        """Begin the time and the memory peak of the next step."""
        reset_peak(self.args.device)
        self._step_started = time.perf_counter()

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*arguments, **options)
        self.restart_clock()

    # -- Checkpoints -----------------------------------------------------------------------

    def _save_checkpoint(self, model: "nn.Module", trial: Any) -> None:
        run_dir = Path(self.args.output_dir)
        step = self.state.global_step
        folder = write_checkpoint(run_dir, step, self._run_id, self._write_state)
        prune_checkpoints(run_dir, self._settings.save_total_limit, self._run_id)
        for observer in self._observers:
            observer.on_checkpoint(step, folder)

    def _write_state(self, folder: Path) -> None:
        weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(tensors, folder / state.ADAPTER_WEIGHTS, metadata={"format": "pt"})
        state.save_optimizer(_plain(self.optimizer), folder)
        state.save_plain(self.lr_scheduler.state_dict(), folder / state.SCHEDULER_FILE)
        state.save_rng(folder)
        if self.accelerator.scaler is not None:
            state.save_plain(self.accelerator.scaler.state_dict(), folder / state.SCALER_FILE)
        self.state.save_to_json(str(folder / state.TRAINER_STATE))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: "nn.Module | None" = None
    ) -> None:
        weights = load_file(Path(resume_from_checkpoint) / state.ADAPTER_WEIGHTS)
        outcome = set_peft_model_state_dict(self.model, weights)
        absent = [name for name in outcome.missing_keys if "lora_" in name]
        if absent or outcome.unexpected_keys:
            raise CheckpointError(
                f"does not hold this adapter: {len(absent)} tensors are missing and "
                f"{len(outcome.unexpected_keys)} are of something else",
                where=resume_from_checkpoint,
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.load_optimizer(_plain(self.optimizer), Path(checkpoint))
            self.lr_scheduler.load_state_dict(
                state.load_plain(Path(checkpoint) / state.SCHEDULER_FILE)
            )

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(
                state.load_plain(Path(checkpoint) / state.SCALER_FILE)
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.load_rng(Path(checkpoint))


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


class _Flow(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """The points of the loop where lorafit listens or steers."""

    def __init__(self, trainer: LoraTrainer, stop: StopRequest) -> None:
        self._trainer = trainer
        self._stop = stop

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.restart_clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # At the end of a step every random number of the step is drawn, so that resuming from
        # here is exact; in the middle of one it would not be.
        if self._stop.received is not None:
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any
    ) -> None:
        self._trainer.publish(metrics["eval_loss"])


def training_arguments(
    settings: Settings,
    *,
    run_dir: Path,
    micro_batch: int,
    accumulation: int,
    warmup_steps: int,
    dtype: torch.dtype,
    device_kind: str,
    compile_model: bool,
    validate: bool,
) -> TrainingArguments:
    """Translate settings into transformers' arguments; everything else there is switched off."""
    return TrainingArguments(
        output_dir=str(run_dir),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        # Base weights are already in the compute dtype and adapters are fp32 masters, so that
        # only float16 needs autocast: its gradients have to be scaled.
        fp16=dtype == torch.float16,
        use_cpu=device_kind == "cpu",
        torch_compile=compile_model,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=settings.dataloader_num_workers,
        dataloader_pin_memory=device_kind == "cuda",
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=settings.eval_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        report_to=[],
        disable_tqdm=True,
        label_names=["labels"],
    )
