"""When a run will be over, by a clock that the tests turn."""

from pathlib import Path

import pytest

from lorafit.report.pace import Pace, count_due
from lorafit.report.records import StepRecord

FOLDER = Path("checkpoint")


class Run:
    """Drives a `Pace` through a run with steps, validations and saves of given seconds."""

    def __init__(self, num_steps, first_step=0, **options):
        self.now = 1000.0
        self.pace = Pace(clock=lambda: self.now, **options)
        self.now += 5.0
        self.step = first_step
        self.pace.on_start(num_steps, first_step)

    def take(self, seconds, *, tokens=100, validation=None):
        self.step += 1
        self.now += seconds + (validation or 0.0)
        values = dict.fromkeys(("loss", "learning_rate", "grad_norm", "epoch"), 1.0)
        values |= dict.fromkeys(("memory_allocated_bytes", "memory_reserved_bytes"), 1)
        self.pace.on_step(
            StepRecord(
                step=self.step,
                seconds=seconds,
                tokens=tokens,
                supervised_tokens=tokens,
                tokens_per_second=tokens / seconds,
                validation_loss=None if validation is None else 2.0,
                **values,
            )
        )
        return self.pace.seconds_left()

    def save(self, seconds):
        self.now += seconds
        self.pace.on_checkpoint(self.step, FOLDER)


def test_a_first_step_that_compiles_says_nothing_of_the_rest():
    run = Run(100)
    assert run.pace.seconds_left() is None
    assert run.take(60.0) is None
    assert run.take(1.0) == pytest.approx(98.0)
    assert run.pace.first_seconds == 60.0
    assert run.pace.steady_seconds == 1.0
    assert run.pace.startup_seconds == 5.0


def test_what_the_trainer_does_before_its_first_step_is_start_up():
    run = Run(10)
    run.now += 7.0
    run.take(1.0)
    assert run.pace.startup_seconds == 5.0 + 7.0


def test_a_run_of_one_step_ends_with_nothing_left():
    assert Run(1).take(60.0) == 0.0


def test_a_resumed_run_counts_only_what_it_has_to_do_itself():
    run = Run(110, first_step=100)
    run.take(30.0)
    assert run.take(2.0) == pytest.approx(8 * 2.0)


def test_validations_to_come_are_expected_at_first_and_then_as_measured():
    run = Run(40, eval_steps=10, validation_seconds=20.0)
    run.take(1.0)
    assert run.take(1.0) == pytest.approx(38 * 1.0 + 4 * 20.0)
    for _ in range(7):
        run.take(1.0)
    assert run.take(1.0, validation=6.0) == pytest.approx(30 * 1.0 + 3 * 6.0)
    run.now += 2.0  # samples are written before the next step begins
    assert run.take(1.0) == pytest.approx(29 * 1.0 + 3 * (6.0 + 2.0))


def test_a_validation_early_in_a_long_run_does_not_stretch_every_step():
    run = Run(1000, eval_steps=500)
    for _ in range(499):
        run.take(1.0)
    assert run.take(1.0, validation=300.0) == pytest.approx(500 * 1.0 + 300.0)


def test_saves_to_come_are_counted_and_the_last_step_has_one_too():
    run = Run(25, save_steps=10)
    for _ in range(10):
        run.take(1.0)
    run.save(4.0)
    assert run.pace.saves == [4.0]
    assert run.take(1.0) == pytest.approx(14 * 1.0 + 2 * 4.0)


def test_a_save_right_after_a_validation_is_part_of_its_pause():
    run = Run(20, eval_steps=10, save_steps=10)
    for _ in range(9):
        run.take(1.0)
    run.take(1.0, validation=3.0)
    run.save(4.0)
    assert run.pace.saves == []
    assert run.take(1.0) == pytest.approx(9 * 1.0 + 1 * (3.0 + 4.0))


def test_the_time_left_runs_down_between_two_steps_and_never_below_zero():
    run = Run(10)
    run.take(5.0)
    before = run.take(5.0)
    run.now += 3.0
    assert run.pace.seconds_left() == pytest.approx(before - 3.0)
    run.now += 1000.0
    assert run.pace.seconds_left() == 0.0


def test_the_speed_now_is_that_of_the_latest_steps():
    run = Run(1000)
    for _ in range(100):
        run.take(1.0)
    for _ in range(50):
        left = run.take(3.0)
    assert left == pytest.approx(850 * 3.0)


@pytest.mark.parametrize(
    ("first", "last", "interval", "count"),
    [
        *[(0, 10, 5, 2), (5, 10, 5, 1), (4, 10, 5, 2), (0, 4, 5, 1), (10, 10, 5, 0)],
        *[(0, 12, 5, 3), (10, 12, 5, 1), (11, 12, 5, 1), (0, 5, 1, 5)],
    ],
)
def test_what_comes_every_few_steps_comes_at_the_last_one_too(first, last, interval, count):
    assert count_due(first, last, interval) == count
