"""A run on the terminal: a live bar where there is one, plain lines elsewhere."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lorafit.report.records import StepRecord
from lorafit.text import escape_control
from lorafit.units import format_bytes, format_duration


class TerminalProgress:
    """Shows a run while it goes on; a `lorafit.report.records.RunObserver`."""

    def __init__(self, console: Console, logging_steps: int) -> None:
        self._console = console
        self._logging_steps = logging_steps
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._num_steps = 0
        self._first_step = 0
        self._started = time.monotonic()

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Open the bar."""
        self._num_steps, self._first_step = num_steps, first_step
        self._started = time.monotonic()
        if not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("[dim]elapsed"),
            TimeElapsedColumn(),
            TextColumn("[dim]left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("training", total=num_steps, completed=first_step)
        self._bar.start()

    def on_step(self, record: StepRecord) -> None:
        """Advance the bar; print a line at every logging step and every validation."""
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step, description=_short(record))
        is_due = record.step % self._logging_steps == 0 or record.step == self._num_steps
        if is_due or record.step == self._first_step + 1 or record.validation_loss is not None:
            self._print(self._line(record))

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Show that validation goes on."""
        if self._bar is not None:
            text = f"validating {done}/{total}" if done < total else "training"
            self._bar.update(self._task, description=text)

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Say where the checkpoint lies."""
        self._print(f"step {step}: checkpoint {escape_control(str(folder))}")

    def on_note(self, text: str) -> None:
        """Print the note."""
        self._print(escape_control(text))

    def on_end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, record: StepRecord) -> str:
        parts = [
            f"step {record.step}/{self._num_steps}",
            f"loss {record.loss:.4f}",
            f"lr {record.learning_rate:.2e}",
            f"grad {record.grad_norm:.2f}",
            f"{record.tokens_per_second:,.0f} tokens/s",
            format_bytes(record.memory_reserved_bytes),
        ]
        if record.validation_loss is not None:
            parts.append(f"validation loss {record.validation_loss:.4f}")
        done = record.step - self._first_step
        left = (time.monotonic() - self._started) / done * (self._num_steps - record.step)
        return "  ".join(parts) + f"  left {format_duration(left)}"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _short(record: StepRecord) -> str:
    return (
        f"loss {record.loss:.3f}  lr {record.learning_rate:.1e}  "
        f"{record.tokens_per_second:,.0f} tok/s  {format_bytes(record.memory_reserved_bytes)}"
    )
