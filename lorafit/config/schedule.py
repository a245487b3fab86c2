"""The length of a run and its learning rate at every step, in closed form.

Steps are counted as transformers' `Trainer.set_initial_training_values` counts them, rates as
`transformers.optimization.get_scheduler` sets them; a test holds both against the real ones.
"""

import math
from dataclasses import dataclass

from lorafit.config.batch import BatchPlan
from lorafit.config.rules import POLYNOMIAL_END
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, Problem
from lorafit.units import format_count

_INVERSE_SQRT_TIMESCALE = 10_000
"""What transformers takes where there is no warm-up to take the time scale from."""


@dataclass(frozen=True)
class Schedule:
    """How long a run is and how its learning rate warms up, in optimizer steps."""

    num_rows: int
    micro_batches_per_epoch: int
    """Forward passes of each device in an epoch."""
    steps_per_epoch: int
    num_epochs: float
    """Passes over the data that `total_steps` amount to; may be fractional."""
    total_steps: int
    total_reason: str
    warmup_steps: int
    warmup_share: float
    """`warmup_steps` as a share of `total_steps`."""
    warmup_reason: str
    rows_last_step: int
    """Rows in the last optimizer step of an epoch, which takes what is left."""


def plan_schedule(num_rows: int, batch: BatchPlan, settings: Settings) -> Schedule:
    """Return the schedule of training on `num_rows` rows, or bins where rows are packed.

    Raises:
        ConfigError: there are no rows, or the warm-up would not end within the run.
    """
    if num_rows < 1:
        raise ConfigError([Problem("data", "there are no rows to train on")])
    per_pass = batch.per_device_train_batch_size * batch.num_devices
    passes = math.ceil(num_rows / per_pass)
    per_epoch = math.ceil(passes / batch.gradient_accumulation_steps)
    if settings.max_steps is not None:
        total = settings.max_steps
        reason = f"max_steps is {total}"
    else:
        unit = "bins" if settings.packing else "rows"
        total = math.ceil(settings.num_train_epochs * per_epoch)
        reason = (
            f"{settings.num_train_epochs:g} epochs of {per_epoch} steps "
            f"({format_count(num_rows)} {unit} at {batch.effective_batch_size} a step)"
        )
    warmup, warmup_reason = _plan_warmup(total, settings)
    return Schedule(
        num_rows=num_rows,
        micro_batches_per_epoch=passes,
        steps_per_epoch=per_epoch,
        num_epochs=total / per_epoch,
        total_steps=total,
        total_reason=reason,
        warmup_steps=warmup,
        warmup_share=warmup / total,
        warmup_reason=warmup_reason,
        rows_last_step=num_rows - (per_epoch - 1) * per_pass * batch.gradient_accumulation_steps,
    )


def _plan_warmup(total: int, settings: Settings) -> tuple[int, str]:
    if settings.lr_scheduler_type == "constant":
        return 0, "the constant schedule has no warm-up"
    if settings.warmup_steps is not None:
        if settings.warmup_steps >= total:
            message = (
                f"a warm-up of {settings.warmup_steps} steps does not end within the {total} "
                "steps of this run, so the learning rate would never reach its peak"
            )
            hint = f"warmup_steps must be below {total}, or leave it out and use warmup_ratio"
            raise ConfigError([Problem("warmup_steps", message, hint)])
        share = settings.warmup_steps / total
        return settings.warmup_steps, f"warmup_steps is set; {share:.1%} of {total} steps"
    asked = math.ceil(total * settings.warmup_ratio)
    shown = f"warmup_ratio {settings.warmup_ratio:g} of {total} steps"
    if asked >= total:
        # The first warm-up step has rate 0: a run of only warm-up would learn next to nothing.
        return total - 1, f"{shown}, less one so that the last step has the peak rate"
    return asked, f"{shown}, rounded up"


def learning_rate_at(schedule: Schedule, settings: Settings, step: int) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    The first step of a warm-up has rate 0. Past the end of the run, linear, cosine and polynomial
    schedules stay where they ended.
    """
    peak, warmup, total = settings.learning_rate, schedule.warmup_steps, schedule.total_steps
    kind = settings.lr_scheduler_type
    if kind == "constant":
        return peak
    if step < warmup:
        return peak * (step / warmup)
    if kind == "constant_with_warmup":
        return peak
    if kind == "inverse_sqrt":
        timescale = warmup or _INVERSE_SQRT_TIMESCALE
        return peak / math.sqrt((step - warmup + timescale) / timescale)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if kind == "cosine":
        return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    floor = POLYNOMIAL_END if kind == "polynomial" else 0.0
    return floor + (peak - floor) * (1.0 - done)


HIGH_RATE = 0.9
"""A step is at a high rate when its rate is at least this share of the peak."""
_MOST_SAMPLES = 100_000
"""Steps that are looked at one by one; of longer runs every k-th is, and stands for k."""


@dataclass(frozen=True)
class RateSummary:
    """What a schedule amounts to; rates as the optimizer takes them, steps as counts."""

    peak_rate: float
    """The highest rate of any step."""
    final_rate: float
    """The rate of the last step."""
    mean_rate: float
    high_steps: int
    """Steps with at least `HIGH_RATE` of the peak."""
    high_share: float
    rate_sum: float
    """Sum of the rates of all steps: AdamW moves a parameter by at most about this much, as each
    step moves it by about its rate (https://arxiv.org/abs/1412.6980, section 2.1)."""


def summarize_rates(schedule: Schedule, settings: Settings) -> RateSummary:
    """Return the figures of a schedule, summed over its steps."""
    total = schedule.total_steps
    stride = -(-total // _MOST_SAMPLES)
    rates = [learning_rate_at(schedule, settings, step) for step in range(0, total, stride)]
    peak = max(rates)
    high = sum(rate >= HIGH_RATE * peak for rate in rates)
    mean = math.fsum(rates) / len(rates)
    return RateSummary(
        peak_rate=peak,
        final_rate=learning_rate_at(schedule, settings, total - 1),
        mean_rate=mean,
        high_steps=min(total, high * stride),
        high_share=high / len(rates),
        rate_sum=mean * total,
    )
