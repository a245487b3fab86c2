import json
import os
import shutil
from pathlib import Path

import pytest

from lorafit.errors import CheckpointError, StorageError
from lorafit.training.checkpoints.checkpoint import (
    list_checkpoints,
    newest_verified,
    require_disk_space,
    sweep_staging,
    verify_checkpoint,
    write_checkpoint,
)
from lorafit.training.checkpoints.retention import (
    plan_retention,
    prune_checkpoints,
    set_later_aside,
)


def fill(folder):
    (folder / "weights").write_bytes(bytes(range(256)) * 4)
    (folder / "state.json").write_text('{"a": 1}')


@pytest.fixture
def three(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step, "me", fill)
    return tmp_path


def test_a_written_checkpoint_verifies(tmp_path):
    folder = write_checkpoint(tmp_path, 7, "me", fill)
    checkpoint = verify_checkpoint(folder)
    assert (folder.name, checkpoint.step, checkpoint.run_id) == ("checkpoint-7", 7, "me")
    assert checkpoint.files.keys() == {"weights", "state.json"}
    assert not list(tmp_path.glob(".staging-*"))


@pytest.mark.row("F17")
def test_f17_every_flipped_byte_of_every_file_is_found(tmp_path):
    folder = write_checkpoint(tmp_path, 1, "me", fill)
    for name in ("weights", "state.json"):
        path = folder / name
        good = path.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 8)):
            bad = bytearray(good)
            bad[position] ^= 1
            path.write_bytes(bytes(bad))
            with pytest.raises(CheckpointError, match=f"{name}: has changed since it was written"):
                verify_checkpoint(folder)
        path.write_bytes(good)
    verify_checkpoint(folder)


def test_a_save_that_fails_publishes_nothing_and_keeps_the_old(three):
    def fail(folder):
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="step 4 could not be written: No space left"):
        write_checkpoint(three, 4, "me", fail)
    assert [c.step for c in list_checkpoints(three)] == [1, 2, 3]
    assert not list(three.glob(".staging-*"))


def test_the_newest_whole_checkpoint_is_found_and_the_damaged_ones_are_named(three):
    (three / "checkpoint-3" / "weights").write_bytes(b"short")
    (three / "checkpoint-2" / "state.json").unlink()
    found, skipped = newest_verified(three, "me")
    assert found is not None
    assert found.step == 1
    assert "checkpoint-3/weights: has 5 bytes, but 1,024 were written" in skipped[0]
    assert "checkpoint-2/state.json: is missing" in skipped[1]


def test_a_manifest_must_vouch_for_what_is_required(three):
    verify_checkpoint(three / "checkpoint-3", ["weights", "state.json"])
    with pytest.raises(CheckpointError, match="checkpoint-3/optimizer: is not in the manifest"):
        verify_checkpoint(three / "checkpoint-3", ["weights", "optimizer"])


def test_a_checkpoint_of_another_run_is_passed_over(three):
    write_checkpoint(three, 9, "someone else", fill)
    found, skipped = newest_verified(three, "me")
    assert found is not None
    assert found.step == 3
    assert "checkpoint-9: belongs to another run (someone else)" in skipped[0]


def test_pruning_keeps_the_newest_and_never_touches_what_others_wrote(three):
    write_checkpoint(three, 1000, "someone else", fill)
    (three / "checkpoint-2000").mkdir()
    (three / "checkpoint-abc").mkdir()
    removed = prune_checkpoints(three, 2, "me")
    assert [folder.name for folder in removed] == ["checkpoint-1"]
    assert {p.name for p in three.iterdir()} == {
        "checkpoint-2", "checkpoint-3", "checkpoint-1000", "checkpoint-2000", "checkpoint-abc",
    }  # fmt: skip


def test_sweeping_removes_what_a_killed_save_left_and_follows_no_link(three, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "mine").write_text("x")
    (three / ".staging-checkpoint-4").mkdir()
    (three / ".staging-run.json").write_text("{")
    (three / ".staging-link").symlink_to(elsewhere)
    assert {p.name for p in sweep_staging(three)} == {".staging-checkpoint-4", ".staging-run.json"}
    assert (elsewhere / "mine").exists()
    assert len(list_checkpoints(three)) == 3


def rewrite(folder):
    (folder / "weights").write_bytes(b"new")


@pytest.mark.row("F15")
def test_a_repeated_step_keeps_the_whole_checkpoint_that_is_there(three):
    before = (three / "checkpoint-3" / "manifest.json").stat().st_ino
    write_checkpoint(three, 3, "me", rewrite)
    assert (three / "checkpoint-3" / "manifest.json").stat().st_ino == before
    verify_checkpoint(three / "checkpoint-3")
    assert not list(three.glob(".staging-*"))


@pytest.mark.row("F15")
def test_a_repeated_step_replaces_its_damaged_checkpoint(three):
    (three / "checkpoint-3" / "weights").write_bytes(b"short")
    write_checkpoint(three, 3, "me", rewrite)
    assert verify_checkpoint(three / "checkpoint-3").files["weights"]["bytes"] == 3
    assert not list(three.glob(".staging-*"))


@pytest.mark.row("F15", "F35")
@pytest.mark.parametrize("foreign", ["folder", "file", "other run"])
def test_what_others_left_at_the_target_is_renamed_and_never_deleted(three, foreign):
    target = three / "checkpoint-4"
    if foreign == "folder":
        target.mkdir()
        (target / "mine.txt").write_text("precious")
    elif foreign == "file":
        target.write_text("precious")
    else:
        write_checkpoint(three, 4, "someone else", fill)
    notes = []
    for _ in range(2):  # the second time, the name to rename it to is taken as well
        write_checkpoint(three, 4, "me", fill, on_note=notes.append)
        assert verify_checkpoint(target).run_id == "me"
        shutil.copytree(three / "checkpoint-1", target, dirs_exist_ok=True)
        (target / "manifest.json").write_text("not mine")
    assert notes == [
        "checkpoint-4 was not this run's: it is now set-aside-checkpoint-4",
        "checkpoint-4 was not this run's: it is now set-aside-checkpoint-4-2",
    ]
    kept = three / "set-aside-checkpoint-4"
    if foreign == "folder":
        assert (kept / "mine.txt").read_text() == "precious"
    elif foreign == "file":
        assert kept.read_text() == "precious"
    else:
        assert verify_checkpoint(kept).run_id == "someone else"


@pytest.mark.row("F14")
def test_an_fsync_that_fails_publishes_nothing(three, monkeypatch):
    calls = []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="step 4 could not be written: Input/output error"):
        write_checkpoint(three, 4, "me", fill)
    assert [c.step for c in list_checkpoints(three)] == [1, 2, 3]
    assert not list(three.glob(".staging-*"))


@pytest.mark.row("F41")
def test_data_reaches_the_disk_before_the_manifest_and_the_name_comes_last(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        order.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def record_replace(source, target):
        order.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_checkpoint(tmp_path, 1, "me", fill)
    assert order == [
        ("fsync", "state.json"),
        ("fsync", "weights"),
        ("fsync", ".staging-manifest.json"),
        ("rename", "manifest.json"),
        ("fsync", ".staging-checkpoint-1"),
        ("rename", "checkpoint-1"),
        ("fsync", tmp_path.name),
    ]


@pytest.mark.row("F9")
def test_a_full_disk_is_told_with_what_it_takes_and_what_is_free(three, monkeypatch):
    def full(folder):
        fill(folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorafit.training.checkpoints.checkpoint.free_bytes", lambda path: 512)
    with pytest.raises(StorageError, match=r"it takes 1\.01 KiB or more, and 512 B are free"):
        write_checkpoint(three, 4, "me", full)


@pytest.mark.row("F13")
def test_a_run_folder_that_vanished_is_not_made_again(tmp_path):
    with pytest.raises(StorageError, match="the run folder vanished: the checkpoint of step 4"):
        write_checkpoint(tmp_path / "gone", 4, "me", fill)
    assert not (tmp_path / "gone").exists()


def with_losses(run_dir, losses):
    for step, loss in losses.items():
        facts = {} if loss is None else {"validation_loss": loss}
        write_checkpoint(run_dir, step, "me", fill, facts)


def test_the_best_checkpoint_is_never_pruned(tmp_path):
    with_losses(tmp_path, {1: 3.0, 2: 1.5, 3: None, 4: 2.0, 5: 2.5})
    assert [p.name for p in prune_checkpoints(tmp_path, 2, "me")] == [
        "checkpoint-1",
        "checkpoint-3",
    ]
    plan = plan_retention(list_checkpoints(tmp_path), 2)
    assert [(entry.checkpoint.step, entry.reason) for entry in plan] == [
        (2, "best validation loss"),
        (4, "newest 2"),
        (5, "newest 2"),
    ]
    with_losses(tmp_path, {6: 1.0})
    assert [p.name for p in prune_checkpoints(tmp_path, 2, "me")] == [
        "checkpoint-2",
        "checkpoint-4",
    ]


def test_nothing_is_pruned_while_the_newest_is_damaged(three):
    (three / "checkpoint-3" / "weights").write_bytes(b"short")
    assert prune_checkpoints(three, 1, "me") == []
    assert [c.step for c in list_checkpoints(three)] == [1, 2, 3]


def test_later_checkpoints_are_set_aside_when_a_run_takes_another_course(three):
    write_checkpoint(three, 9, "someone else", fill)
    moved = set_later_aside(three, "me", 1)
    assert {path.name for path in moved} == {"set-aside-checkpoint-2", "set-aside-checkpoint-3"}
    assert [c.step for c in list_checkpoints(three)] == [1, 9]


def test_the_step_is_the_manifests_and_not_the_folder_names(three):
    shutil.move(three / "checkpoint-1", three / "checkpoint-0010")
    found, _ = newest_verified(three, "me")
    assert found is not None
    assert found.step == 3


def test_disk_space_is_compared_with_both_numbers_shown(tmp_path):
    require_disk_space(tmp_path, 100, 100)
    with pytest.raises(StorageError, match=r"need 2\.00 KiB, but only 1\.00 KiB are free"):
        require_disk_space(tmp_path, 2048, 1024)


def test_the_manifest_is_json_that_a_person_can_read(three):
    document = json.loads((three / "checkpoint-2" / "manifest.json").read_text())
    assert document["schema_version"] == 1
    assert document["step"] == 2
    assert document["files"]["weights"]["bytes"] == 1024
