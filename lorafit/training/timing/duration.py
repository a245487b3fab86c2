"""How long a run takes, before it starts: from the speed of earlier runs, else by arithmetic.

Whatever is not known is said to be: a device without a rate, answers that a model has yet to write.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from lorafit.report.flops import find_peak_flops
from lorafit.report.pace import Pace
from lorafit.training.timing.duration_arithmetic import arithmetic_parts, assumptions_of
from lorafit.training.timing.duration_record import Speed, add_speed, key_of, read_speeds
from lorafit.training.timing.duration_work import Parts, RunWork, work_of
from lorafit.units import format_about, format_count

if TYPE_CHECKING:
    from lorafit.training.planning.run_plan import RunPlan

_SAME_SPREAD, _OTHER_SPREAD = 1.25, 1.6
"""Factor by which a run like an earlier one may be slower or faster, and one of another batch or
length of rows: round figures, for a machine that does nothing else. bench/duration.py holds runs
against them."""
_LIKE_ROWS = 1.25
"""Rows whose mean lengths differ by less than this factor are alike."""
_RECENT_RUNS = 5
_FEWEST_STEPS = 3
"""A run with fewer steps past its first one tells no speed."""
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1, ""))
_REMEMBERED = "the speed of the first run here is remembered"


@dataclass(frozen=True)
class NotKnown:
    """Why nothing is said of the duration."""

    reason: str

    def line(self) -> str:
        """Return it as a line of the plan."""
        return f"not known: {self.reason}"

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of run.json's plan."""
        return {"seconds": None, "reason": self.line()}

    def as_results(self) -> dict[str, Any]:
        """Return what stands beside the duration that was measured."""
        return _results(None, None, None)


@dataclass(frozen=True)
class Duration:
    """The wall time of a run from its plan to its adapter, in seconds, with its range."""

    seconds: float
    low_seconds: float
    high_seconds: float
    work: RunWork
    parts: Parts
    basis: Literal["measured", "arithmetic"]
    source: str
    """Where the speed comes from, as the end of a sentence."""
    reason: str

    @property
    def tokens_per_second(self) -> float:
        """Of the steps alone, without padding."""
        return self.work.tokens / self.parts.steps if self.parts.steps else 0.0

    def line(self) -> str:
        """Return it as a line of the plan, never without its range and source."""
        low, high = format_about(self.low_seconds), format_about(self.high_seconds)
        return (
            f"about {format_about(self.seconds)} ({low} to {high}): "
            f"{format_count(self.work.tokens)} tokens at {self.tokens_per_second:,.0f} tokens/s, "
            f"{self.source}"
        )

    def parts_line(self) -> str:
        """Return what the time goes to, as a line of the plan."""
        parts, count = self.parts, self.work.num_validations
        each = f"validation and samples {count} x {format_about(parts.validation)}"
        shown = [
            f"{format_about(parts.startup)} to the first step",
            f"{format_about(parts.steps)} of steps",
            *([each] if count else []),
            f"{format_about(parts.saving)} of saving",
        ]
        return ", ".join(shown)

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of run.json's plan."""
        return {
            "seconds": self.seconds,
            "low_seconds": self.low_seconds,
            "high_seconds": self.high_seconds,
            "tokens": self.work.tokens,
            "tokens_per_second": self.tokens_per_second,
            "flops": self.work.flops,
            "basis": self.basis,
            "startup_seconds": self.parts.startup,
            "step_seconds": self.parts.steps,
            "validation_seconds": self.parts.validation,
            "num_validations": self.work.num_validations,
            "saving_seconds": self.parts.saving,
            "reason": self.reason,
        }

    def as_results(self) -> dict[str, Any]:
        """Return what stands beside the duration that was measured."""
        return _results(self.seconds, self.low_seconds, self.high_seconds)


def _results(*seconds: float | None) -> dict[str, Any]:
    names = ("predicted", "predicted_low", "predicted_high")
    shown = (None if value is None else round(value, 3) for value in seconds)
    return dict(zip((f"{name}_duration_seconds" for name in names), shown, strict=True))


def estimate_duration(plan: "RunPlan", first_step: int = 0) -> Duration | NotKnown:
    """Return the duration of the steps after `first_step`, with what comes before and after.

    The speed is that of earlier runs of this model on this device, where there are any; the
    nearest in batch and length of rows are taken, and their operations a second carried over.
    """
    if plan.settings.method != "sft":
        return NotKnown(
            f"how long {plan.settings.method} takes hangs on more than the tokens of the data; "
            "the run tells once its first steps are taken"
        )
    work = work_of(plan, first_step)
    speeds = read_speeds(key_of(plan))
    return _from_speeds(plan, work, speeds) if speeds else _from_arithmetic(plan, work)


# -- From earlier runs ---------------------------------------------------------------------


def _from_speeds(plan: "RunPlan", work: RunWork, speeds: Sequence[Speed]) -> Duration:
    alike = [speed for speed in speeds if _is_alike(plan, work, speed)]
    chosen = (alike or list(speeds))[-_RECENT_RUNS:]
    spread = _SAME_SPREAD if alike else _OTHER_SPREAD
    found = [_measured_parts(work, speed) for speed in chosen]
    totals = [parts.total(work.num_validations) for parts in found]
    last = chosen[-1]
    runs = "the run" if len(chosen) == 1 else f"{len(chosen)} runs"
    batch = "this batch and length of rows"
    if not alike:
        batch = (
            f"other ones, the last with {last.micro_batch} rows a micro-batch and "
            f"{last.row_tokens:.0f} tokens a row, carried over by floating point operations"
        )
    return Duration(
        seconds=totals[-1],
        low_seconds=min(totals) / spread,
        high_seconds=max(totals) * spread,
        work=work,
        parts=found[-1],
        basis="measured",
        source="as the last run here" if alike else "from the last run here, of another batch",
        reason=f"measured: {runs} of this model here with {batch}, on {last.measured_at[:10]}",
    )


def _is_alike(plan: "RunPlan", work: RunWork, speed: Speed) -> bool:
    is_like = 1 / _LIKE_ROWS < speed.row_tokens / work.row_tokens < _LIKE_ROWS
    return is_like and speed.micro_batch == plan.batch.per_device_train_batch_size


def _measured_parts(work: RunWork, speed: Speed) -> Parts:
    # A run without validation tells the speed of its steps, whose products are the same.
    validation_rate = speed.validation_flops_per_second or speed.flops_per_second
    return Parts(
        startup=speed.startup_seconds + speed.first_step_seconds,
        steps=work.flops / speed.flops_per_second,
        validation=work.validation_flops / validation_rate + (speed.sampling_seconds or 0.0),
        saving=work.num_saves * (speed.save_seconds or 0.0) + speed.ending_seconds,
    )


# -- By arithmetic -------------------------------------------------------------------------


def _from_arithmetic(plan: "RunPlan", work: RunWork) -> Duration | NotKnown:
    device = plan.device
    if device.kind == "cpu" and not device.detected:
        return NotKnown("a CPU's speed is measured where it runs, and this one is planned for")
    if plan.is_sharded:
        return NotKnown(
            "weights that are shared come over a connection whose speed is not known; "
            f"{_REMEMBERED}"
        )
    peak = find_peak_flops(device, plan.dtype.value)
    if peak is None:
        obstacle = f"{device.name} is not in the catalog"
        if device.catalog_key is not None:
            obstacle = f"the catalog has no {plan.dtype.value} rate of {device.name}"
        return NotKnown(f"{obstacle}; {_REMEMBERED}")
    fast, slow = assumptions_of(plan)
    quick, long = (arithmetic_parts(plan, work, peak, end) for end in (fast, slow))
    # The middle of a range that is a factor.
    parts = Parts(*(math.sqrt(a * b) for a, b in zip(quick, long, strict=True)))
    return Duration(
        seconds=parts.total(work.num_validations),
        low_seconds=quick.total(work.num_validations),
        high_seconds=long.total(work.num_validations),
        work=work,
        parts=parts,
        basis="arithmetic",
        source="by arithmetic",
        reason=f"{_flop(work.flops_per_token)} a token, padding included, and "
        f"{_flop(peak.value)}/s at best ({peak.reason}), of which training is taken to reach "
        f"{slow.share:.0%} to {fast.share:.0%}; {_REMEMBERED}",
    )


def _flop(number: float) -> str:
    scale, prefix = next((s, p) for s, p in _PREFIXES if number >= s or s == 1)
    return f"{number / scale:.3g} {prefix}FLOP"


# -- What a run leaves for the next --------------------------------------------------------


def remember_speed(plan: "RunPlan", pace: Pace) -> str | None:
    """Keep the speed of a finished run for the next one; return why not, if that failed."""
    if plan.settings.method != "sft" or pace.num_steady < _FEWEST_STEPS:
        return None
    return add_speed(key_of(plan), measured_speed(plan, pace))


def measured_speed(plan: "RunPlan", pace: Pace) -> Speed:
    """Return the speed of a run that took at least two steps."""
    work = work_of(plan, pace.first_step)
    rate = pace.steady_tokens / pace.steady_seconds
    mean = pace.steady_seconds / pace.num_steady
    validation = None
    if pace.validations and work.validation_flops:
        validation = work.validation_flops / max(fmean(pace.validations), 1e-6)
    return Speed(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        num_steps=pace.num_steady,
        micro_batch=plan.batch.per_device_train_batch_size,
        row_tokens=work.row_tokens,
        tokens_per_second=rate,
        flops_per_second=rate * work.flops_per_token,
        first_step_seconds=max(0.0, (pace.first_seconds or 0.0) - mean),
        startup_seconds=pace.startup_seconds,
        validation_flops_per_second=validation,
        sampling_seconds=fmean(pace.samplings) if pace.samplings else None,
        save_seconds=fmean(pace.saves) if pace.saves else None,
        ending_seconds=pace.ending_seconds,
    )
