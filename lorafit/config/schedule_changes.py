"""What other epochs, batches or steps do to the learning rate: computed from both schedules."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from lorafit.config.batch import BatchPlan, resolve_batch
from lorafit.config.layers import Resolved, resolve_layers
from lorafit.config.method_rules import advised_range
from lorafit.config.presets import load_preset
from lorafit.config.rules import POLYNOMIAL_END
from lorafit.config.schedule import (
    HIGH_RATE,
    RateSummary,
    Schedule,
    learning_rate_at,
    plan_schedule,
    summarize_rates,
)
from lorafit.config.schema import Settings, recommended_range
from lorafit.errors import ConfigError

_FEW_STEPS = 50
"""Fewer updates than this are a round figure for a run that hardly leaves its warm-up."""


@dataclass(frozen=True)
class Course:
    """A run as its learning rate sees it."""

    label: str
    """What it is called beside others: `this run`, `preset balanced`, `2 epochs`."""
    settings: Settings
    batch: BatchPlan
    schedule: Schedule

    @cached_property
    def rates(self) -> RateSummary:
        """The figures of its schedule."""
        return summarize_rates(self.schedule, self.settings)

    def rate_at(self, step: float) -> float:
        """Return the rate of the step, counted from 0."""
        return learning_rate_at(self.schedule, self.settings, int(step))

    def lines(self) -> list[str]:
        """Return the schedule in a few sentences."""
        schedule, rates = self.schedule, self.rates
        end = f"ends at {rates.final_rate:.2g}"
        if rates.final_rate < 1e-3 * rates.peak_rate:
            end = "ends near 0"
        return [
            f"{schedule.total_steps:,} updates of {self.batch.effective_batch_size} rows = "
            f"{schedule.num_epochs:.3g} epochs of {schedule.steps_per_epoch:,}",
            f"warm-up {_steps(schedule.warmup_steps)} ({schedule.warmup_share:.1%}), then "
            f"{self.settings.lr_scheduler_type} from {rates.peak_rate:.2g}; {end}",
            f"at {HIGH_RATE:.0%} of the peak or more for {_steps(rates.high_steps)} "
            f"({rates.high_share:.0%}); mean rate {rates.mean_rate:.2g}",
        ]


def baseline_of(resolved: Resolved, num_rows: int, num_devices: int) -> Course | None:
    """Return the run as its preset and hardware row alone, or the defaults, would have it.

    None where that is no run at all: a warm-up of 100 steps on data of two.
    """
    row = resolved.row
    layers = [] if row is None or resolved.preset is None else [
        load_preset(resolved.preset).layer, row.layer,
    ]  # fmt: skip
    plain = resolve_layers(layers)
    label = f"preset {resolved.preset}" if resolved.preset else "the defaults"
    try:
        batch = resolve_batch(plain, num_devices)
        return Course(label, plain.settings, batch, plan_schedule(num_rows, batch, plain.settings))
    except ConfigError:
        return None


def differs(old: Course, new: Course) -> bool:
    """Return whether two runs have different learning rates at any step, or different batches."""
    names = ("learning_rate", "lr_scheduler_type")
    settings = any(getattr(old.settings, name) != getattr(new.settings, name) for name in names)
    lengths = (old.schedule.total_steps, old.schedule.warmup_steps, old.batch.effective_batch_size)
    return settings or lengths != (
        new.schedule.total_steps,
        new.schedule.warmup_steps,
        new.batch.effective_batch_size,
    )


def describe_changes(old: Course, new: Course) -> list[str]:
    """Return what the new run does otherwise than the old one, most important first."""
    return [
        *_length(old, new),
        *_warmup(old, new),
        *_stretch(old, new),
        *_high(old, new),
        *_sum(old, new),
    ]


def _length(old: Course, new: Course) -> Iterator[str]:
    before, after = old.schedule.total_steps, new.schedule.total_steps
    rows = (old.batch.effective_batch_size, new.batch.effective_batch_size)
    if rows[0] != rows[1]:
        yield f"{rows[1]} rows an update instead of {rows[0]}: gradients are " + (
            "less noisy, and there are fewer of them an epoch"
            if rows[1] > rows[0]
            else "noisier, and there are more of them an epoch"
        )
    if before != after:
        yield f"{_steps(after)} instead of {_steps(before)} (x{after / before:.3g})"


def _warmup(old: Course, new: Course) -> Iterator[str]:
    before, after = old.schedule, new.schedule
    if (before.warmup_steps, before.total_steps) == (after.warmup_steps, after.total_steps):
        return
    shares = f"{before.warmup_share:.1%} -> {after.warmup_share:.1%} of the run"
    counts = f"{before.warmup_steps} -> {_steps(after.warmup_steps)}"
    if before.warmup_steps == after.warmup_steps:
        if before.warmup_steps:
            yield f"the warm-up stays {_steps(after.warmup_steps)}, so its share is {shares}"
    elif abs(after.warmup_share - before.warmup_share) * before.total_steps < 1:
        yield (
            f"the warm-up keeps its share ({after.warmup_share:.1%}), so it takes {counts}: the "
            f"rate rises {after.warmup_steps / max(1, before.warmup_steps):.3g} times as slowly"
        )
    else:
        yield f"the warm-up takes {counts}, {shares}"


def _stretch(old: Course, new: Course) -> Iterator[str]:
    """Yield where the new rate stands at the moment at which the old run was over."""
    end = old.schedule.total_steps
    if new.schedule.total_steps <= end:
        if new.schedule.total_steps < end:
            last = new.schedule.total_steps - 1
            yield (
                f"the curve is squeezed: at step {last + 1:,} this run is over, where the other "
                f"would still train at {_share(old, last)}"
            )
        return
    yield (
        f"the decay is stretched: at step {end:,}, where the other run was over, this one still "
        f"trains at {_share(new, end - 1)}"
    )


def _share(course: Course, step: int) -> str:
    rate = course.rate_at(step)
    return f"{rate:.2g} ({rate / course.rates.peak_rate:.0%} of the peak)"


def _high(old: Course, new: Course) -> Iterator[str]:
    before, after = old.rates, new.rates
    if before.high_steps != after.high_steps:
        yield (
            f"{_steps(after.high_steps)} at {HIGH_RATE:.0%} of the peak or more instead of "
            f"{before.high_steps:,} (share {before.high_share:.0%} -> {after.high_share:.0%})"
        )
    if before.peak_rate != after.peak_rate:
        yield f"the peak is {after.peak_rate:.3g} instead of {before.peak_rate:.3g}"
    if abs(before.final_rate - after.final_rate) > 0.01 * max(before.peak_rate, after.peak_rate):
        yield f"the last step has {after.final_rate:.2g} instead of {before.final_rate:.2g}"


def _sum(old: Course, new: Course) -> Iterator[str]:
    factor = new.rates.rate_sum / old.rates.rate_sum
    if abs(factor - 1) >= 0.02:
        yield f"all rates add up to {factor:.3g} times the sum, and so far can the adapter move"


def find_schedule_warnings(new: Course, old: Course | None = None) -> list[str]:
    """Return what leaves the recommended ranges, or what a change asks to be looked at."""
    return [*_range_warnings(new), *([] if old is None else _change_warnings(old, new))]


def _range_warnings(course: Course) -> Iterator[str]:
    schedule, settings = course.schedule, course.settings
    if settings.lr_scheduler_type != "constant":
        advised = recommended_range("warmup_ratio")
        assert advised is not None
        share = schedule.warmup_share
        # Whole steps: a share of 3 % of 40 steps can only be 1 or 2 of them.
        slack = 1 / schedule.total_steps
        if not advised.low - slack <= share <= advised.high + slack:
            why = advised.below if share < advised.low else advised.above
            yield (
                f"the warm-up is {share:.1%} of the run, outside the recommended "
                f"{advised.low:.0%} to {advised.high:.0%}: {why}"
            )
    rate = advised_range(settings, "learning_rate")
    assert rate is not None
    if not rate.low <= settings.learning_rate <= rate.high:
        why = rate.below if settings.learning_rate < rate.low else rate.above
        yield (
            f"the peak rate {settings.learning_rate:.2g} is outside the recommended {rate.low:.2g} "
            f"to {rate.high:.2g}: {why}"
        )
    if schedule.total_steps < _FEW_STEPS:
        yield (
            f"{schedule.total_steps} updates are few (below {_FEW_STEPS}): a smaller effective "
            "batch or more epochs give more"
        )


def _change_warnings(old: Course, new: Course) -> Iterator[str]:
    rows = (old.batch.effective_batch_size, new.batch.effective_batch_size)
    same_peak = old.settings.learning_rate == new.settings.learning_rate
    factor = rows[1] / rows[0]
    if same_peak and not 0.5 < factor < 2:
        # Square-root scaling for Adam: https://arxiv.org/abs/2205.10287
        peak = max(new.settings.learning_rate * factor**0.5, POLYNOMIAL_END)
        yield (
            f"the batch changed x{factor:.3g} and the peak rate did not; for AdamW the rate goes "
            f"with the square root of the batch: about {peak:.2g}"
        )
    if same_peak and new.rates.rate_sum > 2 * old.rates.rate_sum:
        yield (
            "what was stable for the shorter run may not be for this one: watch the validation "
            "loss, or set early_stopping_patience"
        )


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"
