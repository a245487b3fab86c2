"""The watch over the validation loss, on made-up curves and on a real run that overfits."""

import json

import pytest

from lorafit.report.events import EventLog
from lorafit.report.overfitting import ValidationWatch
from lorafit.report.records import StepRecord


def record(step, loss, validation_loss=None):
    return StepRecord(
        step=step, loss=loss, learning_rate=1e-4, grad_norm=1.0, epoch=0.5, tokens=100,
        supervised_tokens=40, tokens_per_second=50.0, seconds=2.0, memory_allocated_bytes=10,
        memory_reserved_bytes=20, validation_loss=validation_loss,
    )  # fmt: skip


@pytest.fixture
def watch(tmp_path):
    """Let a watch see curves with a validation every second step; return it and what it said."""

    def look(training, validation, patience=None, first_step=0, run_dir=tmp_path):
        said = []
        watching = ValidationWatch(run_dir, patience, said.append)
        watching.on_start(100, first_step)
        for index, loss in enumerate(validation):
            step = first_step + 2 * index + 1
            watching.on_step(record(step, training[index]))
            watching.on_step(record(step + 1, training[index], loss))
            if watching.stop_reason:
                break
        watching.on_end()
        return watching, said

    return look


def test_a_rise_while_the_training_loss_falls_is_named_once_with_the_checkpoint(watch, tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    _, said = watch([2.0, 1.5, 1.0, 0.8, 0.6], [1.9, 1.6, 1.7, 1.8, 1.9])
    (sentence,) = said
    assert sentence == (
        "overfitting: since step 4 the validation loss has risen from 1.6000 to 1.8000 at step 8, "
        "while the training loss fell from 1.5000 to 0.8000; prefer checkpoint-3"
    )


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        ([2.0, 1.5, 1.0, 0.8], [1.9, 1.6, 1.7, 1.5]),  # one evaluation above the best is noise
        ([2.0, 1.5, 1.0, 0.8], [1.9, 1.6, 1.8, 1.7]),  # above the best, and falling again
        ([1.0, 1.1, 1.2, 1.3], [1.6, 1.7, 1.8, 1.9]),  # both rise: divergence, not overfitting
        ([2.0, 1.5, 1.0, 0.8], [1.9, 1.6, 1.5, 1.4]),
        ([2.0], [1.9]),
    ],
)
def test_noise_divergence_and_learning_are_not_called_overfitting(watch, training, validation):
    assert watch(training, validation)[1] == []


def test_without_checkpoints_a_shorter_run_is_preferred(watch):
    _, said = watch([2.0, 1.5, 1.0, 0.8], [1.9, 1.6, 1.7, 1.8])
    assert "prefer a run of 4 steps" in said[0]


def test_patience_counts_validations_since_the_best(watch):
    watching, said = watch([1.0] * 9, [1.5, 1.2, 1.3, 1.25, 1.2, 1.1], patience=3)
    assert watching.stop_reason == said[-1]
    assert watching.stop_reason == (
        "stopped early at step 10: 3 evaluations in a row were no better than 1.2000 at step 4 "
        "(early_stopping_patience 3)"
    )
    assert watch([1.0] * 9, [1.5, 1.2, 1.3, 1.25, 1.1, 1.2], patience=3)[0].stop_reason is None


def test_a_resumed_run_goes_on_counting_where_it_stood(watch, tmp_path):
    log = EventLog(tmp_path)
    for step, loss in ((1, None), (2, 1.2), (3, None), (4, 1.3)):
        log.on_step(record(step, 1.0, loss))
    watching, _ = watch([1.0], [1.3], patience=2, first_step=4)
    assert "at step 6: 2 evaluations" in (watching.stop_reason or "")


def test_what_was_named_before_a_resumption_is_not_named_again(watch, tmp_path):
    log = EventLog(tmp_path)
    for step, (training, loss) in enumerate([(2.0, 1.6), (1.5, 1.7), (1.0, 1.8)], 1):
        log.on_step(record(step, training, loss))
    assert watch([0.9], [1.9], first_step=3)[1] == []


# -- Real runs -----------------------------------------------------------------------------------


def test_a_run_that_learns_nothing_more_is_stopped_early_and_is_complete(
    run_lorafit, train_arguments, tmp_path
):
    run_dir = tmp_path / "run"
    # A rate of nearly nothing: its updates are below the rounding of what they are added to.
    arguments = train_arguments(
        run_dir, eval_steps=1, save_steps=5, max_steps=6, learning_rate=1e-12,
        early_stopping_patience=1, lr_scheduler_type="constant", warmup_steps=None,
        report_to="none",
    )  # fmt: skip
    outcome = run_lorafit(*arguments)
    assert outcome.code == 0, outcome.err
    assert "stopped early at step" in outcome.err
    results = json.loads((run_dir / "run.json").read_text())
    assert results["status"] == "completed"
    stopped = results["results"]["steps"]
    assert stopped < 6
    assert f"stopped early at step {stopped}" in results["results"]["stopped_early"]
    assert (run_dir / f"checkpoint-{stopped}").is_dir()
    assert results["results"]["adapter_step"] == stopped
    again = run_lorafit(*arguments)
    assert (again.code, "already complete" in again.err) == (0, True)
