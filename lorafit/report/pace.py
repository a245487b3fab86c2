"""Where the time of a run goes, told by its own events, and when it will be over."""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from lorafit.report.records import StepRecord

_RECENT_STEPS = 50
"""Steps whose mean is the speed now: rows differ in length from one step to the next."""


class Pace:
    """Times the parts of a run as one of its observers.

    The first step of a process compiles, fills caches and makes the optimizer's state: it is no
    measure of the others, and is kept apart.
    """

    def __init__(
        self,
        *,
        eval_steps: int | None = None,
        save_steps: int | None = None,
        validation_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            eval_steps: steps between validations, the last step having one too; None: there are
                none.
            save_steps: steps between checkpoints, in the same way.
            validation_seconds: what a validation is expected to take until one was measured.
            clock: seconds that only grow.
        """
        self._eval_steps, self._save_steps = eval_steps, save_steps
        self._expected_validation = validation_seconds
        self._clock = clock
        self.started = clock()
        self.num_steps = self.first_step = self.last_step = 0
        self.startup_seconds = 0.0
        """Up to the beginning of the first step."""
        self.first_seconds: float | None = None
        """Of the first step of this process."""
        self.num_steady = self.steady_tokens = 0
        self.steady_seconds = 0.0
        """Of all later steps, without validation and saving."""
        self.validations: list[float] = []
        """Seconds of each validation."""
        self.samplings: list[float] = []
        """Seconds after each: samples are written, and the checkpoint if the step has one."""
        self.saves: list[float] = []
        """Seconds of each checkpoint of a step without validation."""
        self._is_after_validation = False
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._mark = self.started

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Begin the steps: what passed before was start-up."""
        self.num_steps, self.first_step, self.last_step = num_steps, first_step, first_step
        self._mark = self._clock()
        self.startup_seconds = self._mark - self.started

    def on_step(self, record: StepRecord) -> None:
        """Count the step; what it took beyond its own time was its validation."""
        now = self._clock()
        pause = max(0.0, now - self._mark - record.seconds)
        is_validated = record.validation_loss is not None
        if is_validated:
            # Validated at every step, samples of the last one are part of the pause too.
            self.validations.append(pause)
        elif self._is_after_validation:
            self.samplings.append(pause)
        self._is_after_validation = is_validated
        if self.first_seconds is None:
            self.first_seconds = record.seconds
            # The trainer sets itself up before the first step; a validation hides how long it did.
            self.startup_seconds += 0.0 if is_validated else pause
        else:
            self._recent.append(record.seconds)
            self.num_steady += 1
            self.steady_seconds += record.seconds
            self.steady_tokens += record.tokens
        self.last_step, self._mark = record.step, now

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Its time is known when the step is told."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Count the time of the save."""
        now = self._clock()
        pauses = self.samplings if self._is_after_validation else self.saves
        pauses.append(now - self._mark)
        self._is_after_validation, self._mark = False, now

    def on_note(self, text: str) -> None:
        """Takes no time."""

    def on_end(self) -> None:
        """What follows is timed by whoever asks for `elapsed_seconds`."""

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the clock was started."""
        return self._clock() - self.started

    @property
    def ending_seconds(self) -> float:
        """Seconds since the last step or checkpoint."""
        return self._clock() - self._mark

    def seconds_left(self) -> float | None:
        """Return the seconds to the end, validations and checkpoints that are due included.

        None until a second step was taken: the first one would tell far too much.
        """
        left = self.num_steps - self.last_step
        if self.last_step == self.first_step or (left and not self._recent):
            return None
        steps = left * fmean(self._recent) if left else 0.0
        pauses = self._due(self._eval_steps) * self._validation_seconds()
        pauses += self._due(self._save_steps) * fmean(self.saves or [0.0])
        # Some of it has passed since the last event: between two steps the clock goes on.
        return max(0.0, steps + pauses - self.ending_seconds)

    def _validation_seconds(self) -> float:
        """Return what a validation takes with its samples, or is expected to."""
        if not self.validations:
            return self._expected_validation or 0.0
        return fmean(self.validations) + fmean(self.samplings or [0.0])

    def _due(self, interval: int | None) -> int:
        """Return how often something that comes every `interval` steps is still to come."""
        return 0 if interval is None else count_due(self.last_step, self.num_steps, interval)


def count_due(first_step: int, last_step: int, interval: int) -> int:
    """Return how often something comes after `first_step` up to `last_step`.

    Validations and checkpoints come every `interval` steps, and at the last step.
    """
    if last_step <= first_step:
        return 0
    return (last_step - 1) // interval - first_step // interval + 1
