import json
import shutil

import pytest

from lorafit.errors import CheckpointError, StorageError
from lorafit.training.checkpoint import (
    list_checkpoints,
    newest_verified,
    prune_checkpoints,
    require_disk_space,
    sweep_staging,
    verify_checkpoint,
    write_checkpoint,
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


def test_a_step_that_is_repeated_replaces_its_checkpoint(three):
    write_checkpoint(three, 3, "me", lambda folder: (folder / "weights").write_bytes(b"new"))
    assert verify_checkpoint(three / "checkpoint-3").files["weights"]["bytes"] == 3


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
