"""Rows F27, F31 to F34 and F42: other processes, the network, trackers, clocks, broken streams.

F28 to F30, of several training processes, are in tests/distributed.
"""

import fcntl
import json
import os
import signal
import sys
import time

import pytest
from processes import Fault

from lorafit.errors import StorageError
from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import list_checkpoints, verify_checkpoint
from lorafit.training.run_folder.lock import LOCK_FILE, RunLock


@pytest.mark.faults
@pytest.mark.row("F27")
def test_f27_a_killed_data_loader_process_is_explained(fork_server, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    # Two workers hold two steps each in advance: of 18 steps of a row, some follow after these.
    rows = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    workers = {"dataloader_num_workers": 2, "max_steps": 30, "eval_steps": 100}
    arguments = train_arguments(run_dir, **rows, **workers)
    outcome = fork_server.run(*arguments, fault=Fault("kill_workers", {"step": 3}))
    assert outcome.code == 4, outcome.err
    assert "a data loader process died" in outcome.err
    assert "dataloader_num_workers: 0" in outcome.err
    assert "/dev/shm has " in outcome.err
    verify_checkpoint(list_checkpoints(run_dir)[-1].folder)
    assert fork_server.run(*arguments).code == 0


@pytest.mark.faults
@pytest.mark.row("F31")
def test_f31_a_local_model_needs_no_network(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    run_dir = tmp_path / "run"
    outcome = fork_server.run(*train_arguments(run_dir), fault=Fault("no_network", {}))
    if "unshare" in outcome.err:
        pytest.skip("this system lets no process give up its network")
    assert outcome.code == 0, outcome.err
    assert_same_run(whole_run(), run_dir)


@pytest.mark.faults
@pytest.mark.row("F31")
def test_f31_a_hub_model_without_a_network_is_one_error_before_training(
    fork_server, train_arguments, tmp_path
):
    arguments = train_arguments(tmp_path / "run", model="someone/some-model")
    outcome = fork_server.run(*arguments, fault=Fault("no_network", {}), HF_HUB_OFFLINE="0")
    if "unshare" in outcome.err:
        pytest.skip("this system lets no process give up its network")
    assert outcome.code in (3, 4), outcome.err
    assert outcome.err.count("error: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.row("F32")
def test_f32_a_tracker_that_is_down_costs_its_curves_only(fork_server, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    arguments = train_arguments(run_dir, report_to="tensorboard")
    outcome = fork_server.run(*arguments, fault=Fault("broken_tracker", {}))
    assert outcome.code == 0, outcome.err
    assert "tensorboard is incomplete: the tracker is down" in outcome.err
    assert len(read_events(run_dir)) == 6


@pytest.mark.faults
@pytest.mark.row("F33")
def test_f33_a_clock_that_jumps_back_disturbs_nothing(
    fork_server, train_arguments, whole_run, assert_same_run, record_of, tmp_path
):
    run_dir = tmp_path / "run"
    fault = Fault("signal_at_step", {"step": 3, "number": signal.SIGTERM})
    assert fork_server.run(*train_arguments(run_dir), fault=fault).code == 75
    # Newer by the clock, older by step.
    os.utime(run_dir / "checkpoint-2", (2**31 - 1, 2**31 - 1))
    outcome = fork_server.run(*train_arguments(run_dir), fault=Fault("jumping_clock", {}))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-3" in outcome.err
    assert all(event["seconds"] > 0 for event in read_events(run_dir))
    assert record_of(run_dir)["elapsed_seconds"] > 0
    assert_same_run(whole_run(), run_dir)


@pytest.mark.row("F34")
def test_f34_a_second_process_is_kept_out_of_the_folder(fork_server, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    fault = Fault("signal_at_step", {"step": 3, "number": signal.SIGSTOP})
    first = fork_server.start(*train_arguments(run_dir), fault=fault)
    while not first.is_stopped():
        assert first.is_running(), first.err
        time.sleep(0.01)
    assert len(read_events(run_dir)) == 3
    before = (run_dir / "run.json").read_bytes()
    second = fork_server.run(*train_arguments(run_dir))
    assert second.code == 7, second.err
    assert f"{run_dir}: the run is locked by pid {first.pid} on host " in second.err
    assert (run_dir / "run.json").read_bytes() == before
    # The lock of a killed process is free at once.
    first.send(signal.SIGKILL)
    pid = first.pid
    first.wait()
    assert (run_dir / LOCK_FILE).exists()
    third = fork_server.run(*train_arguments(run_dir))
    assert third.code == 0, third.err
    assert f"the lock of pid {pid} on host " in third.err
    assert "which is gone, was taken over" in third.err
    assert not (run_dir / LOCK_FILE).exists()


@pytest.mark.row("F34")
def test_f34_a_lock_leaves_no_empty_folder_and_no_file(tmp_path):
    with RunLock(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK_FILE).is_file()
    assert not (tmp_path / "a").exists()
    with RunLock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["run.json"]


@pytest.mark.row("F34")
def test_f34_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    with RunLock(tmp_path / "run") as lock:
        assert lock.note == "this file system has no locks: a second run is not kept out"


@pytest.mark.row("F34")
def test_f34_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="the run folder cannot be locked"),
        RunLock(tmp_path / "file" / "run"),
    ):
        raise AssertionError


@pytest.mark.row("F42")
@pytest.mark.parametrize("fault", ["closed_stderr", "full_stderr"])
def test_f42_a_terminal_that_is_gone_or_full_does_not_stop_the_run(
    fork_server, train_arguments, record_of, tmp_path, fault
):
    run_dir = tmp_path / "run"
    outcome = fork_server.run(*train_arguments(run_dir), fault=Fault(fault, {}))
    assert outcome.code in (0, 7, 141)
    assert record_of(run_dir)["status"] == "completed"
    assert len(read_events(run_dir)) == 6
    assert (run_dir / "adapter" / "adapter_model.safetensors").is_file()
    (note,) = [n for n in record_of(run_dir)["notes"] if "terminal's output is incomplete" in n]
    assert "No space left" in note or "reader of the output left" in note


@pytest.mark.faults
@pytest.mark.row("F42")
def test_f42_a_closed_stdout_ends_with_141_after_the_run(fork_server, train_arguments, tmp_path):
    import subprocess

    from tiny import child_environment

    command = [sys.executable, "-m", "lorafit", *train_arguments(tmp_path / "run", "--json")]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, env=child_environment()
    )
    os.close(writer)
    assert ended.returncode == 141, ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "completed"
