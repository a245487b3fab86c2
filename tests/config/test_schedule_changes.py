"""What epochs, batch and warm-up do to the learning rate, against sums made by hand."""

import math
from dataclasses import replace

import pytest

from lorafit.config.batch import BatchPlan, resolve_batch
from lorafit.config.layers import flags_layer, resolve_layers
from lorafit.config.resolve import resolve_run
from lorafit.config.schedule import learning_rate_at, plan_schedule, summarize_rates
from lorafit.config.schedule_changes import (
    Course,
    baseline_of,
    describe_changes,
    differs,
    find_schedule_warnings,
)
from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device


def course(rows=1000, micro=4, accumulation=8, label="run", **settings):
    resolved = Settings(**{"learning_rate": 2e-4, "num_train_epochs": 2, **settings})
    batch = BatchPlan(micro, accumulation, 1, micro * accumulation, "given")
    return Course(label, resolved, batch, plan_schedule(rows, batch, resolved))


# -- Figures of one run --------------------------------------------------------------------


def test_linear_decay_without_warmup_has_the_figures_of_the_triangle():
    run = course(lr_scheduler_type="linear", max_steps=100, warmup_steps=0, learning_rate=1e-3)
    rates = run.rates
    # Rates are 1e-3 * (100 - i) / 100 for i = 0..99: the sum is 1e-3 * 5050 / 100.
    assert rates.rate_sum == pytest.approx(1e-3 * 50.5)
    assert rates.mean_rate == pytest.approx(1e-3 * 0.505)
    assert rates.final_rate == pytest.approx(1e-5)
    assert rates.high_steps == 11  # 100 % down to 90 %, in steps of 1 %
    assert rates.high_share == pytest.approx(0.11)


def test_cosine_spends_a_fifth_of_its_decay_above_nine_tenths():
    # 0.5 (1 + cos(pi x)) >= 0.9 up to x = acos(0.8) / pi
    run = course(max_steps=10_000, warmup_steps=0)
    assert run.rates.high_share == pytest.approx(math.acos(0.8) / math.pi, abs=2e-4)


def test_a_constant_rate_is_high_in_every_step():
    rates = course(lr_scheduler_type="constant", max_steps=7).rates
    assert (rates.high_steps, rates.high_share, rates.final_rate) == (7, 1.0, 2e-4)


@pytest.mark.parametrize("kind", ["cosine", "linear", "polynomial", "inverse_sqrt"])
def test_figures_of_a_long_run_are_sampled_and_agree_with_every_step(kind):
    run = course(lr_scheduler_type=kind, max_steps=150_001, warmup_steps=10_000)
    every = [learning_rate_at(run.schedule, run.settings, step) for step in range(150_001)]
    rates = summarize_rates(run.schedule, run.settings)
    assert rates.rate_sum == pytest.approx(math.fsum(every), rel=1e-4)
    peak = max(every)
    high = sum(rate >= 0.9 * peak for rate in every)
    assert rates.high_steps == pytest.approx(high, abs=8)


# -- Two runs ------------------------------------------------------------------------------


def changes(old, new):
    return "\n".join(describe_changes(old, new))


def test_more_epochs_keep_the_share_of_a_warmup_ratio_and_make_it_slower():
    old = course(rows=3200, num_train_epochs=2, warmup_ratio=0.05)
    new = course(rows=3200, num_train_epochs=5, warmup_ratio=0.05)
    assert (old.schedule.total_steps, new.schedule.total_steps) == (200, 500)
    text = changes(old, new)
    assert "500 steps instead of 200 steps (x2.5)" in text
    assert "keeps its share (5.0%), so it takes 10 -> 25 steps" in text
    assert "2.5 times as slowly" in text


def test_more_epochs_shrink_the_share_of_fixed_warmup_steps_only():
    old = course(rows=3200, num_train_epochs=2, warmup_steps=20)
    new = course(rows=3200, num_train_epochs=5, warmup_steps=20)
    assert "the warm-up stays 20 steps, so its share is 10.0% -> 4.0%" in changes(old, new)


def test_a_longer_run_still_trains_at_a_high_rate_where_the_shorter_one_was_over():
    old = course(rows=3200, num_train_epochs=2, warmup_steps=0)
    new = course(rows=3200, num_train_epochs=5, warmup_steps=0)
    share = 0.5 * (1 + math.cos(math.pi * 199 / 500))
    assert "at step 200, where the other run was over, this one still" in changes(old, new)
    assert f"({share:.0%} of the peak)" in changes(old, new)
    # Sums of half a cosine wave over n steps are (n + 1) / 2 peaks: 250.5 / 100.5.
    assert "2.49 times the sum" in changes(old, new)
    assert "squeezed" in changes(new, old)
    high = (old.rates.high_steps, new.rates.high_steps)
    assert f"{high[1]} steps at 90% of the peak or more instead of {high[0]}" in changes(old, new)


def test_a_larger_batch_has_fewer_updates_and_asks_for_another_rate():
    old, new = course(rows=3200), course(rows=3200, accumulation=64)
    text = changes(old, new)
    assert "256 rows an update instead of 32: gradients are less noisy" in text
    (warning,) = [w for w in find_schedule_warnings(new, old) if "batch" in w and "square" in w]
    assert "x8" in warning
    assert f"{2e-4 * math.sqrt(8):.2g}" in warning
    scaled = course(rows=3200, accumulation=64, learning_rate=5e-4)
    assert not any("square root" in w for w in find_schedule_warnings(scaled, old))


def test_equal_runs_differ_in_nothing():
    assert not differs(course(), course())
    assert changes(course(), course()) == ""
    assert differs(course(), course(lr_scheduler_type="linear"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rows": 9000, "warmup_steps": 300}, "outside the recommended 3% to 10%: much of the run"),
        ({"rows": 9000, "warmup_ratio": 0.0}, "outside the recommended 3% to 10%: the first steps"),
        ({"rows": 9000, "learning_rate": 1e-3}, "training may become unstable"),
        ({"rows": 100}, "8 updates are few"),
    ],
)
def test_warns_where_a_schedule_leaves_the_recommended_ranges(settings, text):
    assert any(text in warning for warning in find_schedule_warnings(course(**settings)))


def test_a_schedule_within_the_ranges_has_no_warnings():
    assert find_schedule_warnings(course(rows=9000)) == []
    assert find_schedule_warnings(course(rows=9000, lr_scheduler_type="constant")) == []


# -- The preset's own run ------------------------------------------------------------------


def test_the_baseline_is_the_preset_with_its_row_and_nothing_that_was_asked_for():
    resolved = resolve_run(
        preset="balanced",
        config_file=None,
        overrides=[],
        flags={"num_train_epochs": "2", "learning_rate": "1e-4"},
        environ={},
        device=planned_device("a10g"),
    )
    old = baseline_of(resolved, 1000, 1)
    assert (old.label, old.settings.learning_rate) == ("preset balanced", 2e-4)
    assert old.settings.num_train_epochs == 20
    assert old.batch == replace(resolve_batch(resolved, 1), reason=old.batch.reason)


def test_the_baseline_without_a_preset_is_the_defaults():
    resolved = resolve_layers([flags_layer({"num_train_epochs": "2"})])
    old = baseline_of(resolved, 1000, 1)
    assert (old.label, old.settings) == ("the defaults", Settings())
