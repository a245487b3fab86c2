"""What lorafit's trainers do the same way, whichever library's trainer they extend.

`RunTrainer` comes before the library's trainer among the bases: optimizer, clipping and the check
of each gradient, the records of a step, what a checkpoint holds, and the way back from one. `_Flow`
is where the library's loop lets a run listen and steer.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorafit.config.schema import Settings
from lorafit.errors import DivergedError
from lorafit.model.libraries import quick_imports
from lorafit.model.step import clip_gradients, make_optimizer, trainable_parameters
from lorafit.report.records import RunObserver, StepRecord
from lorafit.training.checkpoints import layout, state
from lorafit.training.checkpoints.checkpoint import vanished
from lorafit.training.checkpoints.snapshot import Snapshot, load_weights
from lorafit.training.guard.health import LossWatch, count_adapters, idle_adapters, idle_warning
from lorafit.training.guard.memory_use import memory_in_use, reset_peak
from lorafit.training.guard.oom import MemoryRecovery
from lorafit.training.guard.signals import StopRequest
from lorafit.training.workers import with_ending_workers

with quick_imports():
    from transformers import TrainerCallback

if TYPE_CHECKING:
    from torch import nn


class RunTrainer:
    """The part of a run's trainer that is lorafit's own."""

    # Of the library's trainer.
    model: Any
    args: Any
    state: Any
    control: Any
    accelerator: Any
    lr_scheduler: Any
    optimizer: Any
    _tr_loss: torch.Tensor

    def __init__(
        self,
        *,
        settings: Settings,
        run_id: str,
        observers: Sequence[RunObserver],
        stop: StopRequest,
        recovery: MemoryRecovery,
        facts: Mapping[str, Any] | None = None,
        note: Callable[[str], None] | None = None,
        **arguments: Any,
    ) -> None:
        """Prepare a run.

        `facts` go into the manifest of every checkpoint, and `note` hears what a person should
        know; the other `arguments` are those of the library's trainer.
        """
        self._settings = settings
        self._run_id = run_id
        self._observers = observers
        self._stop = stop
        self._recovery = recovery
        self._facts = dict(facts or {})
        self._note = note or (lambda text: None)
        self._step_started = time.perf_counter()
        self._last: StepRecord | None = None
        self._loss_watch = LossWatch()
        self._gradients_checked = False
        super().__init__(**arguments)
        self.add_callback(_Flow(self))  # type: ignore[attr-defined]  # the library's

    @property
    def is_main(self) -> bool:
        """Whether this process keeps the records and the checkpoints of the run."""
        return True

    def begin(self) -> None:
        """Prepare for the first step: optimizer and counters are as they will be trained with."""

    def is_asked_to_stop(self) -> bool:
        """Return whether a signal asked the run to stop."""
        return self._stop.received is not None

    def get_train_dataloader(self) -> Any:
        """Return the library's loader; its processes end with this one."""
        loader = super().get_train_dataloader()  # type: ignore[misc]  # the library's
        return with_ending_workers(loader)

    # -- One step --------------------------------------------------------------------------

    def create_optimizer(self, model: "nn.Module | None" = None) -> torch.optim.Optimizer:
        """Create the optimizer over the trainable parameters."""
        if getattr(self, "optimizer", None) is None:
            self.optimizer = make_optimizer(self.model if model is None else model, self._settings)
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def _clip_grad_norm(self, model: "nn.Module") -> torch.Tensor:
        self.accelerator.unscale_gradients()
        return clip_gradients(trainable_parameters(model), self._settings.max_grad_norm)

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
        step, rate = self.state.global_step + 1, self._get_learning_rate()  # type: ignore[attr-defined]  # the library's
        blamed = self._blame()
        raise DivergedError(
            f"step {step}: loss {float(self._tr_loss):g}, gradient norm {norm:g}; "
            f"the update was not applied{f'; {blamed}' if blamed else ''}",
            hint=f"learning_rate was {rate:g}: try a lower one, more warm-up, "
            "or --compute-dtype float32; every checkpoint written so far is intact",
        )

    def _blame(self) -> str:
        """Return which rows a step that diverged was of, where that is known."""
        return ""

    def check_gradients(self) -> None:
        """Say once if adapters get no gradient at all over a step that has one."""
        if self._gradients_checked or not self._expects_gradients():
            return
        self._gradients_checked = True
        warning = idle_warning(idle_adapters(self.model), count_adapters(self.model))
        if warning is not None:
            self._note(warning)

    def _expects_gradients(self) -> bool:
        return True

    # -- Records ---------------------------------------------------------------------------

    def _record_step(
        self, logs: Mapping[str, float], tokens: int, supervised: int, **figures: Any
    ) -> StepRecord:
        """Return the record of the step that the library's trainer logs."""
        seconds = time.perf_counter() - self._step_started
        memory = memory_in_use(self.args.device)
        return StepRecord(
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
            **figures,
        )

    def _hand_out(self, record: StepRecord) -> None:
        self._last = record
        for observer in self._observers:
            observer.on_step(record)

    def _watch_loss(self, record: StepRecord) -> None:
        warning = self._loss_watch.look(
            record.step, record.loss, record.grad_norm, self._settings.max_grad_norm
        )
        if warning is not None:
            self._note(warning)

    def restart_clock(self) -> None:
        """Begin the time and the memory peak of the next step."""
        reset_peak(self.args.device)
        self._step_started = time.perf_counter()

    # -- Checkpoints -----------------------------------------------------------------------

    def _facts_now(self) -> dict[str, Any]:
        """Return what the manifest of a checkpoint of this step says beside its files."""
        facts = dict(self._facts)
        if self._last is not None and self._last.step == self.state.global_step:
            facts["loss"] = self._last.loss
            loss = self._last.validation_loss
            if loss is not None and math.isfinite(loss):
                facts["validation_loss"] = loss
        return facts

    def _write_state(self, folder: Path) -> None:
        self._snapshot().write(folder)
        self.state.save_to_json(str(folder / layout.TRAINER_STATE))

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            self.model,
            plain_optimizer(self.optimizer),
            self.lr_scheduler,
            self.accelerator.scaler,
            self._recovery,
        )

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: "nn.Module | None" = None
    ) -> None:
        load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._snapshot().load_optimizer(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._snapshot().load_scaler(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.load_rng(Path(checkpoint))


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Return the torch optimizer inside accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


class _Flow(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """The points of the loop where lorafit listens or steers."""

    def __init__(self, trainer: RunTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A checkpoint's counters bring its own intervals along; those of this command hold.
        state.compute_steps(args, state.max_steps)
        self._trainer.begin()
        self._trainer.restart_clock()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.check_gradients()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run_dir = Path(args.output_dir)
        if self._trainer.is_main and not run_dir.is_dir():
            raise vanished(run_dir, f"the run stops after step {state.global_step}")
        # At the end of a step every random number of the step is drawn and nothing is generated
        # or accumulated, so that resuming from here is exact; in the middle of one it would not be.
        if self._trainer.is_asked_to_stop():
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
