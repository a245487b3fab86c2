"""Observers that may fail: a terminal that is gone must not stop a run."""

from collections.abc import Callable
from pathlib import Path

from lorafit.report.records import RunObserver, StepRecord


class Guarded:
    """Passes everything on until the observer's output breaks, then nothing more."""

    def __init__(self, observer: RunObserver) -> None:
        self._observer = observer
        self.failure: str | None = None
        """Why the observer saw only part of the run, if it did."""

    def _tell(self, call: Callable[[], None]) -> None:
        if self.failure is not None:
            return
        try:
            call()
        except OSError as problem:
            self.failure = problem.strerror or str(problem)
        except SystemExit as ended:
            # How rich answers a reader that left (`| head`); everything else is meant.
            if not isinstance(ended.__context__, BrokenPipeError):
                raise
            self.failure = "the reader of the output left"

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Pass it on."""
        self._tell(lambda: self._observer.on_start(num_steps, first_step))

    def on_step(self, record: StepRecord) -> None:
        """Pass it on."""
        self._tell(lambda: self._observer.on_step(record))

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Pass it on."""
        self._tell(lambda: self._observer.on_evaluation(step, done, total))

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Pass it on."""
        self._tell(lambda: self._observer.on_checkpoint(step, folder))

    def on_note(self, text: str) -> None:
        """Pass it on."""
        self._tell(lambda: self._observer.on_note(text))

    def on_end(self) -> None:
        """Pass it on."""
        self._tell(self._observer.on_end)
