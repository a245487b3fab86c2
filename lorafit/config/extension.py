"""Making a run longer, and what that does to its learning rate."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from lorafit.config.layers import Origin, Resolved
from lorafit.config.schedule import Schedule, learning_rate_at
from lorafit.config.schema import Settings
from lorafit.errors import UsageError
from lorafit.text import excerpt

_LENGTH = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(epochs?|steps?)")
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 48
_CURVE_ROWS = 8


class Length(NamedTuple):
    """The whole length of a run."""

    amount: float
    unit: str
    """`epochs` or `steps`."""

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


def parse_length(text: str) -> Length:
    """Return the length in text such as `5epochs` or `900steps`.

    Raises:
        UsageError: it is not a positive number of epochs or whole steps.
    """
    found = _LENGTH.fullmatch(text.strip().lower())
    amount = float(found.group(1)) if found else 0.0
    unit = found.group(2).rstrip("s") + "s" if found else ""
    limit = 10**9 if unit == "steps" else 10_000
    if not 0 < amount <= limit or (unit == "steps" and amount != int(amount)):
        raise UsageError(
            f"--extend {excerpt(text)} is not a length",
            hint="give the whole length that the run should have: --extend 5epochs or "
            "--extend 900steps",
        )
    return Length(amount, unit)


def with_length(resolved: Resolved, length: Length) -> Resolved:
    """Return the settings with the length of the run replaced."""
    changes: dict[str, Any] = {"max_steps": None, "num_train_epochs": length.amount}
    if length.unit == "steps":
        changes = {"max_steps": int(length.amount)}
    origin = Origin("flag", "flag --extend")
    settings = resolved.settings.model_copy(update=changes)
    origins = {**resolved.origins, **dict.fromkeys(changes, origin)}
    return replace(resolved, settings=settings, origins=origins)


def schedule_of(document: Mapping[str, Any]) -> Schedule:
    """Return the schedule that a run's record holds.

    Raises:
        KeyError: it is not one.
    """
    return Schedule(**{field.name: document[field.name] for field in fields(Schedule)})


@dataclass(frozen=True)
class ScheduleChange:
    """An old and a new schedule, and the step at which one gives way to the other."""

    old: Schedule
    new: Schedule
    settings: Settings
    step: int
    """Steps that are done; the next one is the first of the new schedule."""

    @property
    def old_rate(self) -> float:
        """Learning rate that the next step would have had."""
        return learning_rate_at(self.old, self.settings, self.step)

    @property
    def new_rate(self) -> float:
        """Learning rate that the next step has."""
        return learning_rate_at(self.new, self.settings, self.step)

    @property
    def jump_share(self) -> float:
        """Change of the next step's learning rate, as a share of the peak."""
        return (self.new_rate - self.old_rate) / self.settings.learning_rate

    def curve(self) -> list[tuple[int, float | None, float]]:
        """Return step, old rate (None past its end) and new rate at a few steps of the run."""
        last = self.new.total_steps - 1
        steps = {round(last * i / (_CURVE_ROWS - 1)) for i in range(_CURVE_ROWS)}
        steps |= {self.step} if self.step <= last else set()
        return [
            (step + 1, self._old_at(step), learning_rate_at(self.new, self.settings, step))
            for step in sorted(steps)
        ]

    def _old_at(self, step: int) -> float | None:
        if step >= self.old.total_steps:
            return None
        return learning_rate_at(self.old, self.settings, step)

    def lines(self) -> list[str]:
        """Return the change in words and as two small curves."""
        return [
            f"{self.old.total_steps} -> {self.new.total_steps} steps; {self.step} are done, "
            f"{self.new.total_steps - self.step} follow",
            f"learning rate of step {self.step + 1}: {self.old_rate:.3g} by the old schedule, "
            f"{self.new_rate:.3g} by the new one ({_jump(self.jump_share)})",
            f"warm-up: {_warmup(self.old)} before, {_warmup(self.new)} now; {self._warmup_state()}",
            f"old  {_bars(self._old_at, self.new, self.settings)}",
            f"new  {_bars(self._new_at, self.new, self.settings)}",
            "     " + " " * self._column() + f"^ step {self.step + 1}",
        ]

    def _new_at(self, step: int) -> float | None:
        return learning_rate_at(self.new, self.settings, step)

    def _column(self) -> int:
        return min(_WIDTH - 1, self.step * _WIDTH // self.new.total_steps)

    def _warmup_state(self) -> str:
        if self.step >= self.new.warmup_steps:
            return "it is over"
        return f"step {self.step + 1} lies within it, so the rate rises once more"

    def as_dict(self) -> dict[str, Any]:
        """Return the change for JSON and run.json."""
        return {
            "step": self.step,
            "old_total_steps": self.old.total_steps,
            "new_total_steps": self.new.total_steps,
            "old_warmup_share": self.old.warmup_share,
            "new_warmup_share": self.new.warmup_share,
            "old_learning_rate": self.old_rate,
            "new_learning_rate": self.new_rate,
            "jump_share_of_peak": self.jump_share,
            "curve": [{"step": step, "old": old, "new": new} for step, old, new in self.curve()],
        }


def _jump(share: float) -> str:
    return "no jump" if abs(share) < 5e-4 else f"a jump of {share:+.1%} of the peak"


def _warmup(schedule: Schedule) -> str:
    steps = schedule.warmup_steps
    return f"{steps} step{'' if steps == 1 else 's'} ({schedule.warmup_share:.1%})"


def _bars(rate: Callable[[int], float | None], new: Schedule, settings: Settings) -> str:
    """Return a curve as one line of blocks; the width is that of the new run."""
    text = ""
    for column in range(_WIDTH):
        value = rate(min(new.total_steps - 1, column * new.total_steps // _WIDTH))
        level = 0.0 if value is None else value / settings.learning_rate
        text += " " if value is None else _BARS[min(7, int(level * 8))]
    return text.rstrip()
