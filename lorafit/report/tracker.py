"""What all trackers share: the curves, the configuration that leaves this machine, the guard.

A tracker is a short class with `_open`, `_log` and `_close`. Whatever it raises costs its curves
only: the reason is kept in `failure`, and it hears no more of the run.
"""

import contextlib
import io
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from lorafit.config.schema import Settings
from lorafit.doctor.redact import redact
from lorafit.report.records import RunObserver, StepRecord

# Figures that only grpo or dpo have.
_METHOD_FIGURES = (
    "reward", "reward_std", "kl", "completion_length", "reward_margin", "reward_accuracy",
)  # fmt: skip


def curves_of(record: StepRecord) -> dict[str, float]:
    """Return the figures of a step under the names that every tracker shows."""
    curves = {
        "train/loss": record.loss,
        "train/learning_rate": record.learning_rate,
        "train/grad_norm": record.grad_norm,
        "train/epoch": record.epoch,
        "train/tokens_per_second": record.tokens_per_second,
        "memory/reserved_bytes": float(record.memory_reserved_bytes),
    }
    if record.validation_loss is not None:
        curves["validation/loss"] = record.validation_loss
    for name in _METHOD_FIGURES:
        value = getattr(record, name)
        if value is not None:
            curves[f"train/{name}"] = value
    for name, value in (record.rewards or {}).items():
        curves[f"rewards/{name}"] = value
    return curves


def tracked_config(settings: Settings) -> dict[str, Any]:
    """Return what a tracker may know of a run: the settings of the schema and nothing else.

    User, host, home folder and anything like a token are taken out of texts.
    """
    values = settings.model_dump(mode="json")
    return {name: _redacted(values[name]) for name in Settings.model_fields}


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    return [_redacted(item) for item in value] if isinstance(value, list) else value


class Tracker(RunObserver):
    """A run's observer that hands its curves to another program; the base of all trackers.

    It does nothing of its own with validations, whose result comes with the step, with
    checkpoints, which are no curve, and with notes, which stay on this machine.
    """

    NAME: ClassVar[str]
    """As `report_to` calls it."""

    def __init__(self, run_dir: Path, run_id: str, config: Mapping[str, Any]) -> None:
        """Prepare; nothing is imported or opened before the run starts.

        Args:
            run_dir: the run's folder, whose name is the run's.
            run_id: the same for all attempts at one run, so that a resumed one goes on.
            config: as `tracked_config` returns it.
        """
        self.run_dir = run_dir
        self.run_id = run_id
        self.config = dict(config)
        self.failure: str | None = None
        """Why the curves are incomplete, if they are."""
        self._is_open = False

    @abstractmethod
    def _open(self, first_step: int) -> None:
        """Import the library and begin, or go on with, its record of the run."""

    @abstractmethod
    def _log(self, step: int, curves: dict[str, float]) -> None:
        """Hand over the curves of a step, each by its name."""

    @abstractmethod
    def _close(self) -> None:
        """End the library's record of the run."""

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Open the tracker; steps after `first_step` are logged again."""
        self._attempt(lambda: self._open(first_step))
        self._is_open = self.failure is None

    def on_step(self, record: StepRecord) -> None:
        """Hand over the step."""
        if self._is_open:
            self._attempt(lambda: self._log(record.step, curves_of(record)))

    def on_end(self) -> None:
        """Close the tracker, also after a failure in between."""
        if self._is_open:
            earlier, self.failure = self.failure, None
            self._attempt(self._close)
            self.failure = earlier or self.failure
            self._is_open = False

    def _attempt(self, call: Callable[[], None]) -> None:
        """Make a call of the tracker's library; what it prints or warns of is not for stdout."""
        if self.failure is not None:
            return
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                call()
        except ImportError as problem:
            missing = f"{problem}: " if problem.name else ""
            self.failure = f'{missing}pip install "lorafit[{self.NAME}]"'
        except (Exception, SystemExit) as problem:  # a tracker must never stop a run
            self.failure = (str(problem) or type(problem).__name__).splitlines()[0]
