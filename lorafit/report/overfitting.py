"""Watching the validation loss: overfitting is named once, and patience may end the run."""

from collections.abc import Callable
from pathlib import Path

from lorafit.report.events import read_events
from lorafit.report.records import StepRecord

_RISES = 2
"""Evaluations in a row above the best that make a rise: one alone is often noise."""


class ValidationWatch:
    """Watches a run as its observer.

    Overfitting means here: the validation loss has been above its best for `_RISES` evaluations,
    rising, while the mean training loss between evaluations is lower than it was at the best.
    """

    def __init__(self, run_dir: Path, patience: int | None, tell: Callable[[str], None]) -> None:
        """Watch a run.

        Args:
            run_dir: where its events and checkpoints are.
            patience: evaluations without a new best after which to stop; None: never stop.
            tell: hears what a person should know.
        """
        self._run_dir = run_dir
        self._patience = patience
        self._tell = tell
        self._validation: list[tuple[int, float]] = []
        self._training: list[float] = []
        """Mean training loss of the steps up to each evaluation, from the one before."""
        self._pending: list[float] = []
        self._is_named = False
        self.stop_reason: str | None = None
        """Why the run should stop now, if it should."""

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Take up what the steps before a resumption showed, without saying it again."""
        for event in read_events(self._run_dir):
            if event["step"] <= first_step:
                self._add(int(event["step"]), event["loss"], event.get("validation_loss"))
        self._is_named = self._overfitting() is not None

    def on_step(self, record: StepRecord) -> None:
        """Look at the step, if it was validated."""
        self._add(record.step, record.loss, record.validation_loss)
        if record.validation_loss is None:
            return
        sentence = self._overfitting()
        if sentence is not None and not self._is_named:
            self._is_named = True
            self._tell(sentence)
        self._judge(record.step)

    def _add(self, step: int, loss: float, validation_loss: float | None) -> None:
        self._pending.append(loss)
        if validation_loss is not None:
            self._validation.append((step, validation_loss))
            self._training.append(sum(self._pending) / len(self._pending))
            self._pending = []

    def _best(self) -> int:
        """Return the position of the lowest validation loss; of equal ones the first."""
        losses = [loss for _, loss in self._validation]
        return losses.index(min(losses))

    def _overfitting(self) -> str | None:
        if len(self._validation) <= _RISES:
            return None
        best = self._best()
        recent = [loss for _, loss in self._validation[-_RISES:]]
        is_rising = len(self._validation) - 1 - best >= _RISES and recent == sorted(recent)
        if not is_rising or not self._training[-1] < self._training[best]:
            return None
        step, lowest = self._validation[best]
        now = self._validation[-1][0]
        return (
            f"overfitting: since step {step} the validation loss has risen from {lowest:.4f} to "
            f"{recent[-1]:.4f} at step {now}, while the training loss fell from "
            f"{self._training[best]:.4f} to {self._training[-1]:.4f}; "
            f"prefer {self._checkpoint(step)}"
        )

    def _checkpoint(self, best_step: int) -> str:
        """Name the checkpoint on disk that is nearest to the best step."""
        steps = [
            int(number)
            for folder in self._run_dir.glob("checkpoint-*")
            if (number := folder.name.partition("-")[2]).isdigit()
        ]
        if not steps:
            return f"a run of {best_step} steps (no checkpoint is that old)"
        nearest = min(steps, key=lambda step: (abs(step - best_step), step))
        return f"checkpoint-{nearest}"

    def _judge(self, step: int) -> None:
        if self._patience is None or not self._validation:
            return
        best = self._best()
        waited = len(self._validation) - 1 - best
        if waited < self._patience:
            return
        best_step, lowest = self._validation[best]
        self.stop_reason = (
            f"stopped early at step {step}: {waited} evaluation{'s' if waited > 1 else ''} in a "
            f"row were no better than {lowest:.4f} at step {best_step} "
            f"(early_stopping_patience {self._patience})"
        )
        self._tell(self.stop_reason)

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Its result comes with the step."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Looked for when it is to be named."""

    def on_note(self, text: str) -> None:
        """Others' words."""

    def on_end(self) -> None:
        """Nothing is open."""
