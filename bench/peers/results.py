"""From measurements to medians of ratios, and from these to tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_estimators.comparison import table

from peers.catalog import PEERS, Peer
from peers.measure import Measurement

OURS, STOCK, REFERENCE = "lorafit", "lorafit-stock", "trainer"
_MIB = 1 << 20

FIGURES = (
    "tokens_per_cpu_second",
    "tokens_per_wall_second",
    "peak_bytes",
    "start_seconds",
    "start_cpu_seconds",
    "first_step_seconds",
)


@dataclass
class Outcome:
    """What was measured of one peer, a measurement a round, or why there is none."""

    peer: Peer
    versions: dict[str, str] = field(default_factory=dict)
    rounds: list[Measurement] = field(default_factory=list)
    failure: str | None = None

    def median(self, figure: str) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(each.figure(figure) for each in self.rounds)


Outcomes = Mapping[str, Outcome]


def ratio(outcomes: Outcomes, figure: str, above: str, below: str) -> float | None:
    """Return the median over the rounds of `above`'s figure divided by `below`'s of that round.

    Rounds are interleaved: what slows the machine down for a while slows both down.
    """
    pair = [outcomes.get(key) for key in (above, below)]
    if any(each is None or each.failure or not each.rounds for each in pair):
        return None
    first, second = (each.rounds for each in pair if each is not None)
    return statistics.median(
        one.figure(figure) / other.figure(figure) for one, other in zip(first, second, strict=True)
    )


def loss_difference(outcomes: Outcomes, key: str, other: str) -> float | None:
    """Return the largest difference of two peers' losses at the same step, over all rounds.

    The difference is a share of the second loss; None where steps are not the same or missing.
    """
    one, two = outcomes.get(key), outcomes.get(other)
    if one is None or two is None or not one.rounds or not two.rounds:
        return None
    differences = []
    for ours, theirs in zip(one.rounds, two.rounds, strict=False):
        if not ours.losses or set(ours.losses) != set(theirs.losses):
            return None
        differences += [abs(ours.losses[s] / theirs.losses[s] - 1) for s in theirs.losses]
    return max(differences)


@dataclass(frozen=True)
class Goal:
    """What was wanted, what was measured, and whether the one meets the other."""

    name: str
    wanted: float
    at_least: bool
    reached: float | None

    @property
    def is_met(self) -> bool | None:
        """Whether it is met; None where it was not measured."""
        if self.reached is None:
            return None
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted


_PACKED = ("trl-packing", "trl-padding-free", "axolotl-packing")


def goals(outcomes: Outcomes) -> list[Goal]:
    """Return the goals for lorafit beside what was reached."""

    def faster(*keys: str) -> float | None:
        ratios = [ratio(outcomes, "tokens_per_cpu_second", OURS, key) for key in keys]
        known = [each for each in ratios if each is not None]
        return min(known) if known else None

    others = [key for key, each in outcomes.items() if each.peer.environment is not None]
    starts = [ratio(outcomes, "first_step_seconds", OURS, key) for key in others]
    found = [each for each in starts if each is not None]
    speed = "tokens per CPU second against "
    return [
        Goal(speed + "TRL, plain", 5.0, True, faster("trl")),
        Goal(speed + "transformers Trainer + PEFT", 3.0, True, faster("trainer")),
        Goal(speed + "LitGPT", 3.0, True, faster("litgpt")),
        Goal(speed + "LLaMA-Factory", 3.0, True, faster("llama-factory")),
        Goal(speed + "the best packed peer measured", 2.0, True, faster(*_PACKED)),
        Goal(
            "largest difference of a step's loss from kernels stock",
            1e-4,
            False,
            loss_difference(outcomes, OURS, STOCK),
        ),
        Goal(
            "peak memory against TRL, plain",
            0.45,
            False,
            ratio(outcomes, "peak_bytes", OURS, "trl"),
        ),
        Goal(
            "seconds to the first step against the quickest peer",
            1.0,
            False,
            max(found) if found else None,
        ),
    ]


def document(outcomes: Outcomes, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything as one JSON document; `facts` describe work, device and date."""
    return {
        "schema_version": 1,
        **facts,
        "peers": {key: _record(outcomes, key) for key in outcomes},
        "goals": [
            {"name": goal.name, "wanted": goal.wanted, "reached": goal.reached, "met": goal.is_met}
            for goal in goals(outcomes)
        ],
    }


def _record(outcomes: Outcomes, key: str) -> dict[str, Any]:
    outcome = outcomes[key]
    measured = bool(outcome.rounds) and not outcome.failure
    return {
        "name": outcome.peer.name,
        "notes": outcome.peer.notes,
        "versions": outcome.versions,
        "failure": outcome.failure,
        "median": {name: outcome.median(name) for name in FIGURES} if measured else None,
        "lorafit_against_it": {name: ratio(outcomes, name, OURS, key) for name in FIGURES},
        "loss_difference_from_stock": loss_difference(outcomes, key, STOCK),
        "rounds": [measurement.record() for measurement in outcome.rounds],
    }


def markdown(outcomes: Outcomes, facts: Mapping[str, Any]) -> str:
    """Return the same as tables to read."""
    work, device = facts["workload"], facts["device"]
    lines = [
        f"# LoRA training on a CPU, {work['num_parameters'] / 1e6:.1f} M parameters",
        f"Written by `bench/throughput.py` on {facts['date']}: {device['name']}, one thread, "
        f"{facts['rounds']} interleaved round(s), {facts['caches']} caches. Phi, float32, "
        f"{work['rows']} rows of {work['mean']:.0f} tokens at the mean ({work['tokens']:,} "
        "in all), one epoch, 16 rows an optimizer step. A rate counts the tokens of prompts and "
        "completions, not padding, from the first forward pass to the end of the last step.",
        _limit(outcomes, facts),
        "## Rates, memory and start",
        rates_table(outcomes),
        "## Goals",
        goals_table(outcomes),
        "## Losses",
        losses_table(outcomes),
        "## Versions",
        _versions_table(outcomes),
    ]
    return "\n\n".join(lines) + "\n"


def _limit(outcomes: Outcomes, facts: Mapping[str, Any]) -> str:
    """Say what the processor's products allow at best, and how much of that is reached."""
    rates = facts["device"]["product_flops_per_second"]
    told = ", ".join(f"{rate / 1e9:.0f} GFLOP/s by {name}" for name, rate in rates.items())
    most = max(rates.values()) / facts["frozen_flops_per_token"]
    text = (
        f"One thread of this processor multiplies float32 matrices at {told} (1024 x 1024, best "
        "of 15). At the better rate the frozen products of the layers alone, forward and for the "
        f"gradient of their input, allow {most:,.0f} tokens a second"
    )
    ours = outcomes.get(OURS)
    if ours is None or ours.failure or not ours.rounds:
        return text + "."
    return f"{text}; lorafit reaches {ours.median('tokens_per_cpu_second') / most:.0%} of it."


def rates_table(outcomes: Outcomes) -> str:
    """Return medians, and beside them the median of lorafit's ratio to each round's."""
    header = ["", "tokens per CPU second", "lorafit is", "per wall second", "lorafit is"]
    header += ["peak MiB", "lorafit takes", "CPU seconds to first forward pass"]
    header += ["seconds to first step"]
    return table(header, [_rates(outcomes, key) for key in outcomes])


def _rates(outcomes: Outcomes, key: str) -> list[str]:
    outcome = outcomes[key]
    if outcome.failure or not outcome.rounds:
        return [outcome.peer.name, f"failed: {outcome.failure}", *[""] * 7]

    def times(figure: str) -> str:
        value = ratio(outcomes, figure, OURS, key)
        return "" if value is None or key == OURS else f"{value:.2f}x"

    return [
        outcome.peer.name,
        f"{outcome.median('tokens_per_cpu_second'):,.0f}",
        times("tokens_per_cpu_second"),
        f"{outcome.median('tokens_per_wall_second'):,.0f}",
        times("tokens_per_wall_second"),
        f"{outcome.median('peak_bytes') / _MIB:,.0f}",
        times("peak_bytes"),
        f"{outcome.median('start_cpu_seconds'):.1f}",
        f"{outcome.median('first_step_seconds'):.1f}",
    ]


def goals_table(outcomes: Outcomes) -> str:
    """Return the goals beside what was reached."""
    words = {True: "met", False: "not met", None: "not measured"}
    rows = [
        [
            goal.name,
            f"{'at least' if goal.at_least else 'at most'} {goal.wanted:g}",
            "" if goal.reached is None else f"{goal.reached:.3g}",
            words[goal.is_met],
        ]
        for goal in goals(outcomes)
    ]
    return table(["lorafit", "goal", "reached", ""], rows)


def losses_table(outcomes: Outcomes, num_steps: int = 8) -> str:
    """Return losses of the first round at some steps; packed bins make other, fewer steps."""
    alike = [key for key, each in outcomes.items() if each.rounds and each.peer.same_steps]
    steps = sorted(outcomes[alike[0]].rounds[0].losses) if alike else []
    shown = [steps[index] for index in _spread(len(steps), num_steps)]
    rows = []
    for key in alike:
        losses = outcomes[key].rounds[0].losses
        difference = loss_difference(outcomes, key, STOCK)
        cells = [f"{losses[step]:.5f}" if step in losses else "" for step in shown]
        largest = "" if difference is None or key == STOCK else f"{difference:.1e}"
        rows.append([outcomes[key].peer.name, *cells, largest])
    header = ["", *(f"step {step}" for step in shown), "largest difference from stock"]
    return table(header, rows)


def _spread(length: int, count: int) -> list[int]:
    """Return up to `count` indices from the first to the last, evenly spaced."""
    if length <= count:
        return list(range(length))
    return [round(index * (length - 1) / (count - 1)) for index in range(count)]


def _versions_table(outcomes: Outcomes) -> str:
    rows = []
    for outcome in outcomes.values():
        versions = ", ".join(f"{name} {version}" for name, version in outcome.versions.items())
        rows.append([outcome.peer.name, versions, outcome.peer.notes])
    return table(["", "versions", "notes"], rows)


def progress(key: str, measurement: Measurement) -> str:
    """Return one line about a measurement that was just made."""
    return (
        f"{PEERS[key].name}: {measurement.tokens_per_cpu_second:,.0f} tokens per CPU second, "
        f"{measurement.peak_bytes / _MIB:,.0f} MiB, first step after "
        f"{measurement.first_step_seconds:.1f} s"
    )


def failed(outcomes: Outcomes) -> Sequence[str]:
    """Return the names of the peers that could not be measured."""
    return [each.peer.name for each in outcomes.values() if each.failure]
