"""How much a planned run computes: tokens with their padding, floating point operations, pauses."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from lorafit.data.micro_batches import plan_micro_batches, token_multiple
from lorafit.memory.planner import PAD_TO_MULTIPLE
from lorafit.report.flops import count_forward_flops, count_step_flops
from lorafit.report.pace import count_due
from lorafit.training.planning.fit import model_config

if TYPE_CHECKING:
    from lorafit.training.planning.batching import Batching
    from lorafit.training.planning.run_plan import RunPlan

_MOST_ROWS = 4096
"""Rows that are looked at for how much padding there is, and how long rows are: a sample is
quick, whatever the size of the data."""


class Parts(NamedTuple):
    """What the time of a run goes to, in seconds."""

    startup: float
    """Loading the model, and what the first step takes beyond the others."""
    steps: float
    validation: float
    """Of one validation, with the samples that are written after it."""
    saving: float
    """Of all checkpoints, and of the adapter at the end."""

    def total(self, num_validations: int) -> float:
        """Return the seconds of the whole run."""
        return self.startup + self.steps + num_validations * self.validation + self.saving


@dataclass(frozen=True)
class RunWork:
    """What is left of a run, after the steps that were taken before."""

    num_steps: int
    tokens: int
    """Of the data, without padding."""
    micro_batches: float
    flops: float
    """Of all processes together, padding included."""
    flops_per_token: float
    """For each token of the data, padding included."""
    num_validations: int
    validation_flops: float
    """Of one validation."""
    num_saves: int
    row_tokens: float
    """Mean tokens of a row."""


def work_of(plan: "RunPlan", first_step: int = 0) -> RunWork:
    """Return the work of a run of supervised training, of the steps after `first_step`."""
    settings, schedule = plan.settings, plan.schedule
    counts, config = plan.data.report.train_counts, model_config(plan.source)
    batches = _sample_batches(plan)
    num_adapter = plan.model.num_trainable_parameters
    step_flops = count_step_flops(settings, config, num_adapter)
    sample = step_flops.of(
        batches.computed, batches.tokens * counts.supervised_tokens / counts.tokens, batches.squares
    )
    tokens = _tokens_after(plan, first_step)
    validation = plan.data.validation
    num_validations = 0
    validation_flops = 0.0
    if validation is not None:
        num_validations = count_due(first_step, schedule.total_steps, settings.eval_steps)
        held_out = validation.counts
        squares = held_out.tokens * _attended(validation.lengths)
        forward = count_forward_flops(settings, config, num_adapter)
        validation_flops = forward.of(held_out.tokens, held_out.supervised_tokens, squares)
    return RunWork(
        num_steps=schedule.total_steps - first_step,
        tokens=tokens,
        micro_batches=batches.count * tokens / batches.tokens,
        flops=sample / batches.tokens * tokens,
        flops_per_token=sample / batches.tokens,
        num_validations=num_validations,
        validation_flops=validation_flops,
        num_saves=count_due(first_step, schedule.total_steps, settings.save_steps),
        row_tokens=counts.tokens / max(1, counts.rows),
    )


def _tokens_after(plan: "RunPlan", first_step: int) -> int:
    """Return the tokens of the steps that are left: exact over whole epochs, else in proportion."""
    schedule = plan.schedule
    per_epoch = plan.data.report.train_counts.tokens

    def up_to(step: int) -> float:
        epochs, steps = divmod(step, schedule.steps_per_epoch)
        units = min(schedule.num_rows, steps * plan.batch.effective_batch_size)
        return per_epoch * (epochs + units / schedule.num_rows)

    return round(up_to(schedule.total_steps) - up_to(first_step))


@dataclass(frozen=True)
class _Batches:
    """Micro-batches that were put together as training does it."""

    count: int
    tokens: int
    computed: int
    """Tokens with padding."""
    squares: float
    """Sum of the squares of the lengths that attention sees."""


def _sample_batches(plan: "RunPlan") -> _Batches:
    """Return the micro-batches of an epoch's beginning, in an order as random as that of a run."""
    batching, effective = plan.batching, plan.batch.effective_batch_size
    packing = batching.packing
    rows = plan.data.train.lengths
    units = rows if packing is None else packing.tokens
    # Whole steps of it: the last step of an epoch is the only one that may be smaller.
    count = min(len(units), max(_MOST_ROWS // effective, 1) * effective)
    lengths = _sample(units, count)
    micro_batches = [
        [share[index] for index in indices]
        for first in range(0, len(lengths), effective)
        for share in _shares(lengths[first : first + effective], plan.batch.num_devices)
        for indices in plan_micro_batches(share, batching.limits)
    ]
    computed = sum(_computed_tokens(units, batching) for units in micro_batches)
    if batching.attention.value is None:
        squares = float(sum(_computed_tokens(u, batching) ** 2 / len(u) for u in micro_batches))
    else:
        squares = sum(lengths) * _attended(rows)
    return _Batches(len(micro_batches), sum(lengths), computed, squares)


def _shares(units: Sequence[int], num_devices: int) -> list[Sequence[int]]:
    """Return what each process takes of a step."""
    bounds = [len(units) * rank // num_devices for rank in range(num_devices + 1)]
    return [units[a:b] for a, b in pairwise(bounds) if b > a]


def _sample(lengths: Sequence[int], count: int) -> list[int]:
    # The same rows each time: the estimate of a run does not change from one plan to the next.
    return random.Random(0).sample(lengths, count)  # noqa: S311  # of rows, not of secrets


def _attended(lengths: Sequence[int]) -> float:
    """Return the tokens of the row that a token is in, as the mean over all tokens."""
    rows = _sample(lengths, min(len(lengths), _MOST_ROWS))
    return sum(length * length for length in rows) / sum(rows)


def _computed_tokens(units: Sequence[int], batching: "Batching") -> int:
    """Return the tokens of a micro-batch as the device computes it."""
    if batching.attention.value is not None:
        return _round_up(sum(units), token_multiple(batching.device_kind))
    longest = max(units)
    fixed = [length for length in batching.lengths.value if length >= longest]
    return len(units) * (min(fixed) if fixed else _round_up(longest, PAD_TO_MULTIPLE))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
