"""TensorBoard: the curves of a run beside its other files; a failure costs the curves only."""

from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.report.records import StepRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class TensorBoardLog:
    """Writes loss, learning rate, gradient norm, throughput and memory of every step."""

    FOLDER = "tensorboard"

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / self.FOLDER
        self._writer: SummaryWriter | None = None
        self.failure: str | None = None
        """Why the curves are incomplete, if they are."""

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Open the log; what an interrupted run wrote after its checkpoint is purged."""
        try:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=first_step + 1)
        except Exception as problem:  # a tracker must never stop a run, whatever it raises
            self.failure = str(problem)

    def on_step(self, record: StepRecord) -> None:
        """Write the step."""
        curves = {
            "train/loss": record.loss,
            "train/learning_rate": record.learning_rate,
            "train/grad_norm": record.grad_norm,
            "train/tokens_per_second": record.tokens_per_second,
            "memory/reserved_bytes": float(record.memory_reserved_bytes),
        }
        if record.validation_loss is not None:
            curves["validation/loss"] = record.validation_loss
        if self._writer is None or self.failure is not None:
            return
        try:
            for name, value in curves.items():
                self._writer.add_scalar(name, value, record.step)
        except Exception as problem:  # as in on_start
            self.failure = str(problem)

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Its result comes with the step."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """No curve."""

    def on_note(self, text: str) -> None:
        """No curve."""

    def on_end(self) -> None:
        """Flush and close."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except Exception as problem:  # as in on_start
            self.failure = self.failure or str(problem)
