"""Rows F1 and F2: kill -9 at any moment, and at every point of a save."""

import random
import signal
import time
from contextlib import suppress

import pytest
from processes import Fault

from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import list_checkpoints, verify_checkpoint
from lorafit.training.checkpoints.layout import STATE_FILES

SAVE_STEPS = 2


def assert_checkpoints_are_whole(run_dir):
    """Every folder that looks like a checkpoint is one."""
    visible = sorted(run_dir.glob("checkpoint-*"))
    for folder in visible:
        verify_checkpoint(folder, STATE_FILES)
    return [folder.name for folder in visible]


def wait_while_running(command, condition):
    while command.is_running():
        with suppress(OSError):  # what is looked at may go while it is looked at
            if condition():
                return
        time.sleep(0.002)


def wait_for_a_moment(chance, command, run_dir):
    """Wait until a command is somewhere at random in its run, however slow the machine is."""
    before = read_events(run_dir)
    moments = {
        "start": lambda: True,
        "folder": lambda: any(run_dir.iterdir()),
        "first step": lambda: read_events(run_dir) != before,
        "later step": lambda: len(read_events(run_dir)) > len(before) + 1,
        "save": lambda: any(run_dir.glob(".staging-*")),
    }
    wait_while_running(command, moments[chance.choice([*moments])])
    time.sleep(chance.uniform(0, 0.2))


def kill_and_resume(fork_server, arguments, run_dir, seconds):
    """Kill a run `seconds` after its first step, and run the command again."""
    command = fork_server.start(*arguments)
    wait_while_running(command, lambda: read_events(run_dir))
    time.sleep(seconds)
    command.send(signal.SIGKILL)
    command.wait()
    steps = [event["step"] for event in read_events(run_dir)]
    assert_checkpoints_are_whole(run_dir)
    newest = max((found.step for found in list_checkpoints(run_dir)), default=0)
    assert steps[-1] - newest <= SAVE_STEPS
    outcome = fork_server.run(*arguments)
    assert outcome.code == 0, outcome.err
    return newest


@pytest.mark.row("F1")
def test_f1_a_kill_during_training_changes_nothing(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    run_dir = tmp_path / "run"
    kill_and_resume(fork_server, train_arguments(run_dir), run_dir, 0.1)
    assert_same_run(whole_run(), run_dir)


@pytest.mark.faults
@pytest.mark.row("F1", "F34")
@pytest.mark.parametrize("seed", range(10))
def test_f1_five_kills_in_a_row_change_nothing(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path, seed
):
    chance, run_dir = random.Random(seed), tmp_path / "run"
    arguments = train_arguments(run_dir)
    for _ in range(5):
        command = fork_server.start(*arguments)
        wait_for_a_moment(chance, command, run_dir)
        command.send(signal.SIGKILL)
        assert command.wait().code in (0, -signal.SIGKILL)
        assert_checkpoints_are_whole(run_dir)
    outcome = fork_server.run(*arguments)
    assert outcome.code == 0, outcome.err
    assert_same_run(whole_run(), run_dir)
    assert not list(run_dir.glob(".*"))


def killed_at(fork_server, train_arguments, run_dir, point):
    fault = Fault("kill_at_point", {"step": 4, "point": point})
    return fork_server.run(*train_arguments(run_dir), fault=fault)


@pytest.mark.row("F2")
def test_f2_a_kill_in_the_middle_of_a_save_leaves_nothing_half(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    run_dir = tmp_path / "run"
    assert killed_at(fork_server, train_arguments, run_dir, 5).code == -signal.SIGKILL
    assert (run_dir / ".staging-checkpoint-4").is_dir()
    assert assert_checkpoints_are_whole(run_dir) == ["checkpoint-2"]
    outcome = fork_server.run(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-2, the newest whole checkpoint" in outcome.err
    assert outcome.err.count("removed .staging-checkpoint-4, which a killed save left behind") == 1
    assert_same_run(whole_run(), run_dir)


@pytest.mark.faults
@pytest.mark.row("F2")
def test_f2_a_kill_at_every_flush_and_rename_of_a_save_leaves_nothing_half(
    fork_server, train_arguments, tmp_path
):
    seen = set()
    for point in range(100):
        run_dir = tmp_path / f"run-{point}"
        outcome = killed_at(fork_server, train_arguments, run_dir, point)
        if outcome.code == 0:
            break
        assert outcome.code == -signal.SIGKILL, outcome.err
        names = assert_checkpoints_are_whole(run_dir)
        assert names in (["checkpoint-2"], ["checkpoint-2", "checkpoint-4"])
        seen.add((len(names), (run_dir / ".staging-checkpoint-4").exists()))
    # Eight files, the manifest and its folder, two renames, the run folder, before and after.
    assert point == int((run_dir.parent / "points").read_text()) >= 14
    assert seen == {(1, False), (1, True), (2, False)}
