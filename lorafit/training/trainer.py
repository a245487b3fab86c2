"""transformers' Trainer with lorafit's step, validation and checkpoints.

The loop, accelerate and the schedule are the library's. Its batch is a whole optimizer step, which
is split into micro-batches here: accumulation is no business of the loop. What a step computes
comes from `lorafit.model.step`, so that the memory tracer runs the same code.
"""

import contextlib
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorafit.config.schema import Settings
from lorafit.data.micro_batches import (
    MicroBatchLimits,
    Row,
    StepRows,
    gather_step,
    plan_micro_batches,
)
from lorafit.evaluation.loss import LossReport, evaluate_loss
from lorafit.model.libraries import quick_imports, without_datasets
from lorafit.model.step import Batch, micro_batch_loss, trainable_parameters
from lorafit.report.records import StepRecord
from lorafit.training.checkpoints import layout, state
from lorafit.training.checkpoints.checkpoint import write_checkpoint
from lorafit.training.checkpoints.retention import (
    best_checkpoint,
    own_checkpoints,
    prune_checkpoints,
)
from lorafit.training.guard.blame import longest_row, name_rows
from lorafit.training.processes.distributed import World
from lorafit.training.processes.sharding import OwnPasses, Passes
from lorafit.training.run_trainer import RunTrainer, plain_optimizer

with quick_imports(), without_datasets():
    from transformers import Trainer, TrainerControl

if TYPE_CHECKING:
    from torch import nn


class LoraTrainer(RunTrainer, Trainer):  # type: ignore[misc]  # transformers is not typed
    """A Trainer that computes, saves and reports the way this package promises."""

    def __init__(
        self,
        *,
        settings: Settings,
        collate: Callable[[Sequence[Row]], Batch],
        eval_limits: Callable[[int], MicroBatchLimits] = MicroBatchLimits,
        row_source: Callable[[Row], str | None] = lambda row: None,
        after_evaluation: Callable[[int], bool] = lambda step: False,
        world: World | None = None,
        passes: Passes | OwnPasses | None = None,
        **arguments: Any,
    ) -> None:
        """Prepare a run; the other `arguments` are those of `RunTrainer` and of the Trainer.

        `row_source` names rows of the data, and `after_evaluation` is called with the step and
        answers whether the run should be saved and end there. `world` are the processes that
        share the rows of a step; the first one alone records and saves. `eval_limits` tells what a
        validation batch of so many full rows may take. `passes` brings all of them
        into each pass through a model that they hold together.
        """
        self.world = world or World()
        self._passes = passes or OwnPasses()
        self._row_source = row_source
        self._after_evaluation = after_evaluation
        self._collate = collate
        self._eval_limits = eval_limits
        self._step_rows = StepRows(())
        self._pending: StepRecord | None = None
        self._saved_step = -1
        self._best_loss: float | None = None
        super().__init__(settings=settings, data_collator=gather_step, **arguments)
        if self.world.rank > 0:
            # Each process drops out other activations; what the first one draws stays as it was.
            torch.manual_seed(settings.seed + self.world.rank)

    @property
    def is_main(self) -> bool:
        """Whether this process keeps the records and the checkpoints of the run."""
        return self.world.is_main

    def begin(self) -> None:
        """Let all processes start from the same adapter, and guard the updates."""
        self.world.align(trainable_parameters(self.model))
        self._guard_update()

    # -- One step: the functions of model/step.py ------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepRows], num_batches: int, device: torch.device
    ) -> tuple[list[StepRows], None]:
        """Draw the rows of one step."""
        return [next(epoch_iterator)], None

    def training_step(
        self, model: "nn.Module", inputs: StepRows, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run forward and backward over a whole step, and return its loss.

        The gradients are those of the exact token mean over the step, on all devices together.
        """
        model.train()
        self._step_rows = inputs
        share = self.world.share_of(inputs)
        num_targets = torch.tensor(inputs.num_targets, device=self.args.device)
        loss = self._recovery.run_step(
            lambda limits: self._run_micro_batches(model, share, num_targets, limits),
            lambda: model.zero_grad(set_to_none=True),
            step=self.state.global_step + 1,
            lengths=self.world.largest_share(inputs),
            longest_row=lambda: longest_row(inputs, self._row_source),
        )
        if self.world.size == 1:
            return loss
        self.world.sum_gradients(trainable_parameters(model))
        return loss.new_tensor(self.world.sums([float(loss)])[0])

    def _run_micro_batches(
        self,
        model: "nn.Module",
        inputs: StepRows,
        num_targets: torch.Tensor,
        limits: MicroBatchLimits,
    ) -> torch.Tensor:
        total = torch.zeros((), device=self.args.device)
        with self._passes.shared():
            for indices in plan_micro_batches(inputs.lengths, limits):
                total += self._micro_step(model, inputs.rows_of(indices), num_targets)
        return total

    def _micro_step(
        self, model: "nn.Module", rows: Sequence[Row], num_targets: torch.Tensor
    ) -> torch.Tensor:
        """Run one micro-batch forward and backward; return its share of the step's loss."""
        batch = self._to_device(self._collate(rows))
        with self.compute_loss_context_manager():
            loss = micro_batch_loss(
                model, batch, num_targets, self._settings.label_smoothing_factor
            )
        self.accelerator.backward(loss)
        return loss.detach()

    def _to_device(self, batch: Batch) -> Batch:
        """Move tensors without waiting for the device; other values stay as they are."""
        device = self.args.device
        pins = device.type == "cuda"
        return {
            name: (value.pin_memory() if pins else value).to(device, non_blocking=pins)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in batch.items()
        }

    def floating_point_ops(self, inputs: StepRows) -> int:
        """Return nothing: the Trainer's count is for batches of one tensor, and is not shown."""
        return 0

    def _blame(self) -> str:
        """Return the rows of the step, or those of them whose loss alone is not finite."""
        rows = [row for unit in self._step_rows.units for row in unit]
        bad: list[Row] = []
        # Memory may be short here; the answer to what diverged must not be another error.
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            bad = [row for row in rows if not torch.isfinite(self._loss_of([row]))]
        if bad and len(bad) < len(rows):
            return f"not finite by themselves: {name_rows(bad, self._row_source)}"
        return f"the step's rows: {name_rows(rows, self._row_source)}"

    def _loss_of(self, rows: Sequence[Row]) -> torch.Tensor:
        return micro_batch_loss(self.model, self._to_device(self._collate(rows)), 1)

    def _guard_update(self) -> None:
        """Let an update that runs out of memory be repeated, or end the run whole."""
        optimizer, update = self.optimizer, self.optimizer.step

        def guarded(*arguments: Any, **options: Any) -> None:
            self._recovery.run_update(
                lambda: update(*arguments, **options),
                plain_optimizer(optimizer),
                step=self.state.global_step + 1,
            )

        optimizer.step = guarded  # of this one wrapper

    # -- Validation ------------------------------------------------------------------------

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Run validation over the whole validation set."""
        step = self.state.global_step

        def progress(done: int, total: int) -> None:
            if self._stop.received is not None:
                raise _EvaluationStopped
            for observer in self._observers:
                observer.on_evaluation(step, done, total)

        rows = self.eval_dataset
        if self.world.size > 1:
            rows = rows.subset(range(self.world.rank, len(rows), self.world.size))

        def attempt(batch_size: int) -> LossReport | None:
            limits = self._eval_limits(batch_size)
            try:
                with self._passes.shared(ends_on=_EvaluationStopped):
                    return evaluate_loss(
                        self.model, rows, self._collate, limits, self.args.device, progress
                    )
            except _EvaluationStopped:
                return None

        loss = self._loss_of_all(self._recovery.run_evaluation(attempt, step=step))
        self.publish(loss)
        if loss is None:
            # Else the loop would ask again at the end of the epoch.
            self.control.should_evaluate = False
            return {}
        metrics = {"eval_loss": loss}
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        with self._passes.shared():
            answer = self._after_loss(step, loss) if self.world.is_main else None
        saves, stops = self.world.decide(lambda: answer)
        if saves or stops:
            self.control.should_save = True
        if stops:
            self.control.should_training_stop = True
        return metrics

    def _after_loss(self, step: int, loss: float) -> tuple[bool, bool]:
        """Return whether the validation asks for a checkpoint, and whether for the end."""
        is_best = self._settings.load_best_model_at_end and self._is_best(loss)
        return is_best, self._after_evaluation(step)

    def _loss_of_all(self, report: LossReport | None) -> float | None:
        """Return the mean over the shares of all processes; None where one has no result."""
        if self.world.size == 1:
            return None if report is None else report.loss
        share = (0.0, 0) if report is None else (report.loss, report.num_targets)
        total = share[0] * share[1] if share[1] else 0.0
        total, targets, missing = self.world.sums([total, share[1], report is None])
        return None if missing else total / targets if targets else math.nan

    def _is_best(self, loss: float) -> bool:
        if self._best_loss is None:
            saved = best_checkpoint(own_checkpoints(Path(self.args.output_dir), self._run_id))
            known = saved.validation_loss if saved is not None else None
            self._best_loss = math.inf if known is None else known
        if loss >= self._best_loss:
            return False
        self._best_loss = loss
        return True

    # -- Records ---------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the Trainer's log of a step into a record; the summary at the end is not one."""
        if "loss" not in logs:
            return
        rows = self._step_rows
        self._pending = self._record_step(logs, rows.num_tokens, rows.num_targets)
        if not self.control.should_evaluate:
            self.publish(None)

    def publish(self, validation_loss: float | None) -> None:
        """Hand the step that is waiting for its validation loss to the observers."""
        record, self._pending = self._pending, None
        if record is None:
            return
        if validation_loss is not None:
            record = StepRecord(**{**record.as_dict(), "validation_loss": validation_loss})
        self._hand_out(record)
        self._watch_loss(record)

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        # Between processes a request counts only at points that all of them come to.
        agrees = self.world.size == 1 or self.control.should_evaluate or self.control.should_save
        super()._maybe_log_save_evaluate(*arguments, **options)
        if agrees and self.is_asked_to_stop():
            # It came while this step was validated or saved: nothing of the next one has begun.
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(self.model, None)
            self.control.should_training_stop = True
        self.restart_clock()

    def is_asked_to_stop(self) -> bool:
        """Return whether a signal asked any process to stop; all of them get the same answer."""
        number = self.world.largest(int(self._stop.received or 0))
        if number and self._stop.received is None:
            self._stop.received = signal.Signals(number)
        return number > 0

    # -- Checkpoints -----------------------------------------------------------------------

    def _save_checkpoint(self, model: "nn.Module", trial: Any) -> None:
        step = self.state.global_step
        random_states = self.world.gather(state.rng_bytes() if self.world.rank else b"")
        if self.world.is_main:
            run_dir = Path(self.args.output_dir)
            folder = self._recovery.run_save(
                lambda: self._write_checkpoint(run_dir, random_states), step=step
            )
            prune_checkpoints(run_dir, self._settings.save_total_limit, self._run_id)
            for observer in self._observers:
                observer.on_checkpoint(step, folder)
        self.world.meet()
        self._saved_step = step

    def _write_checkpoint(self, run_dir: Path, random_states: Sequence[bytes]) -> Path:
        def write(folder: Path) -> None:
            self._write_state(folder)
            for rank, content in enumerate(random_states[1:], 1):
                (folder / layout.rng_file_of(rank)).write_bytes(content)

        step, facts = self.state.global_step, self._facts_now()
        return write_checkpoint(run_dir, step, self._run_id, write, facts, self._note)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.world.is_main:
            super()._load_rng_state(checkpoint)
            return
        # A checkpoint of fewer processes has none for this one: it goes on with its own seed.
        own = Path(checkpoint) / layout.rng_file_of(self.world.rank)
        if own.is_file():
            state.set_rng_bytes(own.read_bytes())


class _EvaluationStopped(Exception):  # noqa: N818  # not an error
    """A signal asked to stop while validation went on."""
