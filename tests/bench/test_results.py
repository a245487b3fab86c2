"""Medians of ratios, goals and tables, from measurements with round numbers."""

from typing import Any

import pytest
from environments import Environment, ensure_environment, python_of
from peers.catalog import PEERS
from peers.measure import Measurement
from peers.results import (
    Outcome,
    document,
    goals,
    loss_difference,
    markdown,
    ratio,
)

FACTS: dict[str, Any] = {
    "date": "2026-01-01",
    "device": {
        "name": "A CPU",
        "product_flops_per_second": {"MKL": 100e9, "oneDNN": 200e9},
    },
    "frozen_flops_per_token": 20e6,
    "rounds": 3,
    "caches": "cold",
    "workload": {"num_parameters": 10_000_000, "rows": 4, "mean": 25.0, "tokens": 100},
}


def measurement(cpu_seconds: float, peak_bytes: int = 100, **losses: float) -> Measurement:
    return Measurement(
        cpu_seconds=cpu_seconds,
        wall_seconds=cpu_seconds,
        start_seconds=3.0,
        start_cpu_seconds=3.0,
        first_step_seconds=4.0,
        peak_bytes=peak_bytes,
        tokens=100,
        positions=200,
        steps=2,
        threads=1,
        losses={int(step.removeprefix("s")): loss for step, loss in losses.items()},
    )


def outcome(key: str, *rounds: Measurement, failure: str | None = None) -> Outcome:
    return Outcome(PEERS[key], {"torch": "2"}, list(rounds), failure)


@pytest.fixture
def outcomes() -> dict[str, Outcome]:
    fast = [measurement(seconds, 40, s1=2.0, s2=1.0) for seconds in (1.0, 2.0, 1.0)]
    stock = [measurement(seconds, 90, s1=2.0, s2=1.0001) for seconds in (3.0, 6.0, 3.0)]
    trl = [measurement(seconds, 100) for seconds in (6.0, 10.0, 7.0)]
    return {
        "lorafit": outcome("lorafit", *fast),
        "lorafit-stock": outcome("lorafit-stock", *stock),
        "trl": outcome("trl", *trl),
        "litgpt": outcome("litgpt", failure="error: out of luck"),
    }


def test_ratios_are_medians_over_rounds_not_ratios_of_medians(
    outcomes: dict[str, Outcome],
) -> None:
    # 6, 5 and 7 by round; the medians are 7 s and 1 s.
    assert ratio(outcomes, "tokens_per_cpu_second", "lorafit", "trl") == pytest.approx(6.0)
    assert ratio(outcomes, "peak_bytes", "lorafit", "trl") == pytest.approx(0.4)
    assert ratio(outcomes, "tokens_per_cpu_second", "lorafit", "litgpt") is None
    assert ratio(outcomes, "tokens_per_cpu_second", "lorafit", "axolotl") is None


def test_losses_are_compared_at_equal_steps_only(outcomes: dict[str, Outcome]) -> None:
    difference = loss_difference(outcomes, "lorafit", "lorafit-stock")
    assert difference == pytest.approx(1e-4, rel=1e-3)
    assert loss_difference(outcomes, "trl", "lorafit-stock") is None


def test_goals_are_met_missed_or_not_measured(outcomes: dict[str, Outcome]) -> None:
    met = {goal.name: goal.is_met for goal in goals(outcomes)}
    assert met["tokens per CPU second against TRL, plain"] is True
    assert met["tokens per CPU second against LitGPT"] is None
    assert met["peak memory against TRL, plain"] is True
    assert met["seconds to the first step against the quickest peer"] is True
    slow = {**outcomes, "lorafit": outcome("lorafit", *[measurement(3.0, 50)] * 3)}
    missed = {goal.name: goal.is_met for goal in goals(slow)}
    assert missed["tokens per CPU second against TRL, plain"] is False
    assert missed["peak memory against TRL, plain"] is False


def test_tables_show_what_failed_in_its_own_words(outcomes: dict[str, Outcome]) -> None:
    page = markdown(outcomes, FACTS)
    assert "| LitGPT | failed: error: out of luck |" in page
    assert "| TRL, plain | 14 | 6.00x |" in page
    record = document(outcomes, FACTS)["peers"]
    assert record["litgpt"]["median"] is None
    assert record["trl"]["lorafit_against_it"]["peak_bytes"] == pytest.approx(0.4)
    assert len(record["trl"]["rounds"]) == 3


def test_the_limit_is_that_of_the_quicker_library(outcomes: dict[str, Outcome]) -> None:
    page = markdown(outcomes, FACTS)
    assert "100 GFLOP/s by MKL, 200 GFLOP/s by oneDNN" in page
    assert "allow 10,000 tokens a second; lorafit reaches 1% of it." in page


def test_an_environment_with_the_same_pins_is_not_made_again(tmp_path: Any) -> None:
    environment = Environment("tool", ("tool==1.0",), removed=("heavy",), emptied=("heavy",))
    folder = tmp_path / "tool"
    folder.mkdir()
    (folder / "pins.txt").write_text(environment.pins)
    (folder / "kept").write_text("")
    assert ensure_environment(environment, tmp_path) == python_of(environment, tmp_path)
    assert (folder / "kept").is_file()
    assert environment.pins != Environment("tool", ("tool==1.0",)).pins
