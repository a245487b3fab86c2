"""A run on the terminal: a live panel where there is one, plain lines elsewhere."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live

from lorafit.cli.live_view import Gauge, LiveState, describe_sample, render_state
from lorafit.report.records import StepRecord
from lorafit.text import escape_control
from lorafit.units import format_bytes, format_duration

if TYPE_CHECKING:
    from lorafit.training.planning.run_plan import RunPlan

_SAMPLES_FILE = "samples.jsonl"
_REFRESHES_PER_SECOND = 4


class TerminalProgress:
    """Shows a run while it goes on; a `lorafit.report.records.RunObserver`."""

    def __init__(
        self,
        console: Console,
        logging_steps: int,
        *,
        gauge: Gauge | None = None,
        run_dir: Path | None = None,
        level: int = logging.INFO,
    ) -> None:
        """Prepare.

        Args:
            console: where to write; a panel is shown if it is a terminal.
            logging_steps: a line is printed every so many steps.
            gauge: what memory and speed are held against.
            run_dir: where samples are read from.
            level: from WARNING on, only notes are printed; at DEBUG, every step.
        """
        self._console = console
        self._logging_steps = 1 if level <= logging.DEBUG else logging_steps
        self._is_quiet = level >= logging.WARNING
        self._run_dir = run_dir
        self._live: Live | None = None
        self._expects_samples = False
        self._state = LiveState(gauge or Gauge(), 0, 0)

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Open the panel."""
        self._state = LiveState(self._state.gauge, num_steps, first_step)
        if self._console.is_terminal and not self._is_quiet:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def _render(self) -> RenderableType:
        # Two columns stay free: an echoed ^C would wrap, and leave a line of the panel behind.
        return render_state(self._state, max(20, self._console.width - 2))

    def on_step(self, record: StepRecord) -> None:
        """Take up the step; print a line at every logging step and every validation."""
        state = self._state
        state.add(record)
        if self._expects_samples:
            state.sample = self._last_sample()
        # They are written once the step is told: the next one finds them.
        self._expects_samples = record.validation_loss is not None
        is_due = record.step % self._logging_steps == 0 or record.step == state.num_steps
        if is_due or record.step == state.first_step + 1 or record.validation_loss is not None:
            self._print(self._line(record))

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Show that validation goes on."""
        self._state.activity = f"validating {done}/{total}" if done < total else "training"

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Say where the checkpoint lies."""
        self._state.pace.on_checkpoint(step, folder)
        self._print(f"step {step}: checkpoint {escape_control(str(folder))}")

    def on_note(self, text: str) -> None:
        """Print the note, however quiet the run is to be."""
        self._console.print(escape_control(text), markup=False, soft_wrap=True)

    def on_end(self) -> None:
        """Close the panel."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, record: StepRecord) -> str:
        state = self._state
        parts = [
            f"step {record.step}/{state.num_steps}",
            f"loss {record.loss:.4f}",
            f"lr {record.learning_rate:.2e}",
            f"grad {record.grad_norm:.2f}",
            f"{record.tokens_per_second:,.0f} tokens/s",
            format_bytes(record.memory_reserved_bytes),
        ]
        if record.validation_loss is not None:
            parts.append(f"validation loss {record.validation_loss:.4f}")
        if record.reward is not None:
            parts.insert(1, f"reward {record.reward:.4f}")
        if record.reward_margin is not None:
            parts.insert(1, f"margin {record.reward_margin:.4f}")
        left = state.pace.seconds_left()
        # Where there is a panel, it has this, and the line stays within 80 columns.
        if left is not None and self._live is None:
            parts.append(f"left {format_duration(left)}")
        return "  ".join(parts)

    def _last_sample(self) -> str:
        """Return the first answer of the newest samples."""
        if self._run_dir is None or self._live is None:
            return ""
        try:
            lines = (self._run_dir / _SAMPLES_FILE).read_text(encoding="utf-8").splitlines()
            samples = [json.loads(line) for line in lines]
            newest = next(one for one in samples if one["step"] == samples[-1]["step"])
            return describe_sample(str(newest["prompt"]), str(newest["completion"]))
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def _print(self, line: str) -> None:
        if not self._is_quiet:
            self._console.print(line, markup=False, soft_wrap=not self._console.is_terminal)


def gauge_of(plan: "RunPlan", *, with_peak: bool) -> Gauge:
    """Return what the figures of a planned run are held against.

    Only a panel shows the share of the peak, and a CPU's is measured, for a fifth of a second.
    """
    from lorafit.report.flops import count_step_flops, find_peak_flops
    from lorafit.training.planning.fit import model_config
    from lorafit.training.timing.duration import NotKnown

    settings, duration = plan.settings, plan.duration
    expected = None if isinstance(duration, NotKnown) else duration.parts.validation
    validates = settings.method == "sft" and plan.data.validation is not None
    peak = find_peak_flops(plan.device, plan.dtype.value) if with_peak else None
    return Gauge(
        predicted_bytes=plan.predicted_peak_bytes,
        capacity_bytes=plan.estimate.capacity_bytes,
        peak_flops=peak.value if peak is not None else None,
        step_flops=count_step_flops(
            settings, model_config(plan.source), plan.model.num_trainable_parameters
        ),
        eval_steps=settings.eval_steps if validates else None,
        save_steps=settings.save_steps,
        validation_seconds=expected,
    )
