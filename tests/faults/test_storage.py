"""Rows F9 to F15: disks that are full, read-only, failing or gone."""

import errno
import json
import shutil
import sys

import pytest
from processes import Fault

from lorafit.training.checkpoints.checkpoint import list_checkpoints, verify_checkpoint

needs_mounts = pytest.mark.skipif(sys.platform != "linux", reason="mounts of its own need Linux")


def run_on_small_disk(fork_server, train_arguments, tmp_path, num_bytes, **more):
    """Train with the run folder on a disk of its own; return outcome and a copy of the folder."""
    arguments = {"folder": str(tmp_path / "disk"), "num_bytes": num_bytes,
                 "copy_to": str(tmp_path / "after"), **more}  # fmt: skip
    outcome = fork_server.run(
        *train_arguments(tmp_path / "disk", save_steps=1), fault=Fault("small_disk", arguments)
    )
    if "unshare" in outcome.err and "Traceback" in outcome.err:
        pytest.skip("this system lets no process mount file systems of its own")
    return outcome, tmp_path / "after"


@needs_mounts
@pytest.mark.row("F9")
def test_f9_a_disk_that_fills_up_in_a_save_keeps_the_earlier_checkpoints(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    # Room for records and two checkpoints of some 120 KB, not for three.
    outcome, after = run_on_small_disk(fork_server, train_arguments, tmp_path, 420_000)
    assert outcome.code == 7, outcome.err
    assert "could not be written: No space left on device; it takes " in outcome.err
    assert " are free" in outcome.err
    assert "earlier checkpoints are intact: free space" in outcome.err
    kept = [checkpoint.folder for checkpoint in list_checkpoints(after)]
    assert kept
    for folder in kept:
        verify_checkpoint(folder)
    assert not list(after.glob(".staging-checkpoint-*"))
    # On a disk with room, the same run goes on.
    outcome = fork_server.run(*train_arguments(after, save_steps=1))
    assert outcome.code == 0, outcome.err
    assert f"continuing from {kept[-1].name}" in outcome.err
    assert_same_run(whole_run(save_steps=1), after)


@pytest.mark.row("F9")
def test_f9_a_disk_that_is_too_small_is_refused_beforehand(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr("lorafit.training.planning.disk.free_bytes", lambda path: 100_000)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 7
    assert "checkpoints and adapter need 280 KiB, but only 97.7 KiB are free" in outcome.err
    assert "lower --save-total-limit" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("F9")
def test_f9_a_disk_that_is_nearly_full_is_warned_of_with_the_bytes(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr("lorafit.training.planning.disk.free_bytes", lambda path: 300_000)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--dry-run"))
    assert outcome.code == 0
    assert "the disk is nearly full: checkpoints and adapter take 280 KiB of the 293 KiB" in (
        outcome.err
    )
    assert "keeping all would take 280 KiB" in outcome.err


@pytest.mark.faults
@pytest.mark.row("F9")
@pytest.mark.parametrize("what", ["adapter", "record"])
def test_f9_a_disk_that_fills_up_at_the_very_end_is_a_storage_error(
    run_lorafit, train_arguments, tmp_path, monkeypatch, what
):
    def full(*_):
        raise OSError(28, "No space left on device")

    target = {
        "adapter": "lorafit.model.adapter.sync_file",
        "record": "lorafit.report.run_record.RunRecord.close",
    }[what]
    monkeypatch.setattr(target, full)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 7
    assert "No space left on device" in outcome.err


@pytest.mark.row("F10")
def test_f10_an_event_log_that_cannot_be_written_costs_the_log_only(
    fork_server, train_arguments, tmp_path
):
    run_dir = tmp_path / "run"
    outcome = fork_server.run(*train_arguments(run_dir), fault=Fault("full_event_log", {}))
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("events.jsonl is incomplete") == 1
    notes = json.loads((run_dir / "run.json").read_text())["notes"]
    assert any("events.jsonl is incomplete: [Errno 28]" in note for note in notes)


@pytest.mark.row("F11")
def test_f11_a_limit_on_file_sizes_is_named(fork_server, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    fault = Fault("limit_files", {"num_bytes": 20 * 1024})
    # Real writes that really fail, deep inside of safetensors.
    outcome = fork_server.run(*train_arguments(run_dir), fault=fault)
    assert outcome.code == 7, outcome.err
    assert "the checkpoint of step 2 could not be written: File too large" in outcome.err
    assert "hint: raise the limit on file sizes (ulimit -f), then run the same" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(run_dir.glob("*checkpoint-*"))


@needs_mounts
@pytest.mark.faults
@pytest.mark.row("F12")
def test_f12_a_disk_that_becomes_read_only_ends_the_run_and_loses_nothing(
    fork_server, train_arguments, whole_run, assert_same_run, tmp_path
):
    outcome, after = run_on_small_disk(
        fork_server, train_arguments, tmp_path, 10_000_000, read_only_at=3
    )
    assert outcome.code == 7, outcome.err
    # The words for people are wrapped nowhere in an error: the path can be copied.
    disk = tmp_path / "disk"
    assert f"{disk}: the checkpoint of step 3 could not be written: Read-only file" in outcome.err
    assert "hint: earlier checkpoints are intact: make the disk writable again" in outcome.err
    assert [checkpoint.step for checkpoint in list_checkpoints(after)] == [1, 2]
    verify_checkpoint(after / "checkpoint-2")
    # Where it can be written again, the same run goes on to the same end.
    outcome = fork_server.run(*train_arguments(after, save_steps=1))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-2" in outcome.err
    assert_same_run(whole_run(save_steps=1), after)


@needs_mounts
@pytest.mark.faults
@pytest.mark.row("F12")
def test_f12_without_an_earlier_checkpoint_none_is_called_intact(
    fork_server, train_arguments, tmp_path
):
    outcome, after = run_on_small_disk(
        fork_server, train_arguments, tmp_path, 10_000_000, read_only_at=1
    )
    assert outcome.code == 7, outcome.err
    assert "the checkpoint of step 1 could not be written: Read-only file system" in outcome.err
    assert "hint: make the disk writable again" in outcome.err
    assert not list(after.glob("*checkpoint-*"))


@pytest.mark.row("F13")
def test_f13_a_run_folder_that_vanishes_is_not_made_again(fork_server, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    fault = Fault("remove_folder", {"folder": str(run_dir), "step": 3})
    outcome = fork_server.run(*train_arguments(run_dir, save_steps=1000), fault=fault)
    assert outcome.code == 7, outcome.err
    assert f"{run_dir}: the run folder vanished: the run stops after step 4" in outcome.err
    assert not run_dir.exists()


@pytest.mark.faults
@pytest.mark.row("F14")
def test_f14_an_fsync_that_fails_publishes_nothing_and_ends_the_run(
    fork_server, train_arguments, tmp_path
):
    run_dir = tmp_path / "run"
    fault = Fault("failing_fsync", {"errno": errno.EIO, "step": 4})
    outcome = fork_server.run(*train_arguments(run_dir), fault=fault)
    assert outcome.code == 7, outcome.err
    assert "the checkpoint of step 4 could not be written: Input/output error" in outcome.err
    assert [path.name for path in run_dir.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert fork_server.run(*train_arguments(run_dir)).code == 0


@pytest.mark.row("F15", "F35")
def test_f15_a_folder_at_the_target_is_renamed_and_said(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir)).code == 0
    shutil.rmtree(run_dir / "checkpoint-6")
    (run_dir / "checkpoint-6").mkdir()
    (run_dir / "checkpoint-6" / "mine").write_text("precious")
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "status": "running"}))
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert "checkpoint-6 was not this run's: it is now set-aside-checkpoint-6" in outcome.err
    assert (run_dir / "set-aside-checkpoint-6" / "mine").read_text() == "precious"
    verify_checkpoint(run_dir / "checkpoint-6")
