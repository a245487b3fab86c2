"""Rows F3 to F8: signals finish the step, save, and the same command goes on."""

import json
import signal

import pytest
from processes import Fault
from tiny import start_lorafit

from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import verify_checkpoint

HINT = "hint: run the same command again to go on from there"


def assert_saved(outcome, run_dir, number, step):
    assert outcome.code == 75, outcome.err
    assert "Traceback" not in outcome.err
    assert f"{signal.Signals(number).name} received: saved at step {step} of 6" in outcome.err
    assert HINT in outcome.err
    assert verify_checkpoint(run_dir / f"checkpoint-{step}").step == step
    assert json.loads((run_dir / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.row("F3")
def test_f3_sigterm_inside_of_an_accumulation_saves_at_the_end_of_the_step(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    run_dir = tmp_path / "run"
    # The 8th micro-batch is the second of three of step 3; dropout is on.
    fault = Fault("signal_in_micro_step", {"count": 8, "number": signal.SIGTERM})
    assert_saved(fork_server.run(*train_arguments(run_dir), fault=fault), run_dir, 15, 3)
    assert fork_server.run(*train_arguments(run_dir)).code == 0
    assert_same_run(whole_run(), run_dir)


@pytest.mark.faults
@pytest.mark.row("F3")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 11, 15])
def test_f3_sigterm_in_any_micro_batch_is_exact(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path, count
):
    run_dir = tmp_path / "run"
    fault = Fault("signal_in_micro_step", {"count": count, "number": signal.SIGTERM})
    step = -(-count // 3)
    # Padded: every step has three micro-batches of two rows, whatever their lengths.
    arguments = train_arguments(run_dir, padding_free="false")
    assert_saved(fork_server.run(*arguments, fault=fault), run_dir, 15, step)
    assert fork_server.run(*arguments).code == 0
    assert_same_run(whole_run(padding_free="false"), run_dir)


@pytest.mark.faults
@pytest.mark.row("F4", "F7")
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.row("F4")),
     pytest.param(signal.SIGHUP, marks=pytest.mark.row("F7"))],
)  # fmt: skip
def test_f4_f7_ctrl_c_and_a_lost_terminal_save_too(fork_server, train_arguments, tmp_path, number):
    run_dir = tmp_path / "run"
    fault = Fault("signal_at_step", {"step": 2, "number": number})
    assert_saved(fork_server.run(*train_arguments(run_dir), fault=fault), run_dir, number, 2)


@pytest.mark.row("F4")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.faults)],
)
def test_f4_a_second_signal_ends_at_once(fork_server, train_arguments, tmp_path, number, code):
    run_dir = tmp_path / "run"
    fault = Fault("signal_at_step", {"step": 3, "number": signal.SIGHUP, "again": number})
    outcome = fork_server.run(*train_arguments(run_dir), fault=fault)
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert [path.name for path in run_dir.glob("checkpoint-*")] == ["checkpoint-2"]
    verify_checkpoint(run_dir / "checkpoint-2")


@pytest.mark.row("F5")
def test_f5_sigterm_during_a_save_lets_it_finish_and_saves_no_second_time(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    run_dir = tmp_path / "run"
    fault = Fault("signal_in_save", {"step": 2, "number": signal.SIGTERM})
    outcome = fork_server.run(*train_arguments(run_dir), fault=fault)
    assert_saved(outcome, run_dir, signal.SIGTERM, 2)
    assert [event["step"] for event in read_events(run_dir)] == [1, 2]
    assert [path.name for path in run_dir.glob("checkpoint-*")] == ["checkpoint-2"]
    assert fork_server.run(*train_arguments(run_dir)).code == 0
    assert_same_run(whole_run(), run_dir)


@pytest.mark.faults
@pytest.mark.row("F3")
def test_sigterm_during_validation_breaks_it_off_and_saves(fork_server, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    fault = Fault("signal_in_validation", {"number": signal.SIGTERM})
    more = {"per_device_eval_batch_size": 1}
    outcome = fork_server.run(*train_arguments(run_dir, **more), fault=fault)
    assert_saved(outcome, run_dir, signal.SIGTERM, 3)
    assert "validation_loss" not in read_events(run_dir)[-1]
    assert fork_server.run(*train_arguments(run_dir, **more)).code == 0


@pytest.mark.row("F6")
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.faults)],
)
def test_f6_a_signal_before_the_first_step_leaves_nothing(
    fork_server, train_arguments, tmp_path, number, code
):
    fault = Fault("signal_before_loading", {"number": number})
    outcome = fork_server.run(*train_arguments(tmp_path / "new" / "run"), fault=fault)
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "new").exists()


@pytest.mark.faults
@pytest.mark.row("F8")
def test_f8_a_process_that_was_stopped_for_a_while_goes_on(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    run_dir = tmp_path / "run"
    fault = Fault("pause", {"step": 3, "seconds": 2})
    outcome = fork_server.run(*train_arguments(run_dir), fault=fault)
    assert outcome.code == 0, outcome.err
    events = read_events(run_dir)
    assert events[3]["seconds"] > 1.5
    assert all(0 < event["tokens_per_second"] < 1e7 for event in events)
    assert_same_run(whole_run(), run_dir)


@pytest.mark.faults
@pytest.mark.row("F3", "F6")
def test_a_command_started_by_a_shell_is_stopped_and_goes_on(train_arguments, tmp_path):
    # No fork server: a new interpreter, as a person starts it.
    run_dir = tmp_path / "run"
    changes = {"max_steps": 400, "save_steps": 1000, "logging_steps": 1, "eval_steps": 1000}
    process = start_lorafit(*train_arguments(run_dir, **changes))
    for line in process.stderr:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert "SIGTERM received: saved at step " in err
    (checkpoint,) = run_dir.glob("checkpoint-*")
    assert 3 <= verify_checkpoint(checkpoint).step < 400
