"""Rows B60 to B63, B67 and B68: checkpoints that are damaged, foreign or hostile."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
from tiny import child_environment

from lorafit.errors import CheckpointError
from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import verify_checkpoint
from lorafit.training.checkpoints.layout import STATE_FILES
from lorafit.training.run_folder.output import permission_notes


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def run_dir(kept, run_lorafit, train_arguments, tmp_path, tmp_path_factory, monkeypatch):
    """A run of this module's settings that was stopped after its checkpoints of steps 2 and 4."""
    if "run" not in kept:
        whole = tmp_path_factory.mktemp("kept") / "run"
        assert run_lorafit(*train_arguments(whole)).code == 0
        shutil.rmtree(whole / "checkpoint-6")
        shutil.rmtree(whole / "adapter")
        record = json.loads((whole / "run.json").read_text())
        (whole / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
        kept["run"] = whole
    return shutil.copytree(kept["run"], tmp_path / "run")


@pytest.fixture
def resume(run_lorafit, train_arguments, run_dir):
    def resume(*more):
        return run_lorafit(*train_arguments(run_dir, *more))

    return resume


def damage(path, how):
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(bytes(content))
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "link":
        path.rename(path.parent.parent / "elsewhere")
        path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.row("B60")
@pytest.mark.parametrize("how", ["missing", "empty", "cut off", "flipped", "folder", "link"])
def test_b60_every_kind_of_damage_to_every_file_is_named(run_dir, how):
    for name in STATE_FILES:
        folder = shutil.copytree(run_dir / "checkpoint-4", run_dir / name / "checkpoint-4")
        damage(folder / name, how)
        with pytest.raises(CheckpointError) as caught:
            verify_checkpoint(folder, STATE_FILES)
        assert str(caught.value).startswith(f"{folder / name}: ")


@pytest.mark.row("B60")
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "rng.json"])
def test_b60_a_damaged_file_of_a_named_checkpoint_ends_with_5(resume, run_dir, name):
    damage(run_dir / "checkpoint-4" / name, "flipped")
    before = sorted(path.name for path in run_dir.iterdir())
    outcome = resume("--resume", run_dir / "checkpoint-4")
    assert outcome.code == 5
    where = run_dir / "checkpoint-4" / name
    assert f"error: {where}: has changed since it was written" in outcome.err
    assert sorted(path.name for path in run_dir.iterdir()) == before


@pytest.mark.row("F16", "F17", "F18", "B60")
@pytest.mark.parametrize("how", ["missing", "flipped"])
def test_f16_without_a_name_the_checkpoint_before_it_is_used_and_that_is_said(resume, run_dir, how):
    damage(run_dir / "checkpoint-4" / "optimizer.safetensors", how)
    outcome = resume()
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-2, the newest whole checkpoint" in outcome.err
    assert "checkpoint passed over: " in outcome.err
    assert "checkpoint-4/optimizer.safetensors" in outcome.err
    notes = json.loads((run_dir / "run.json").read_text())["notes"]
    assert any("checkpoint passed over" in note for note in notes)


@pytest.mark.row("F16")
def test_f16_with_no_whole_checkpoint_the_run_begins_again_and_says_so(resume, run_dir):
    for step in (2, 4):
        damage(run_dir / f"checkpoint-{step}" / "rng.json", "flipped")
    outcome = resume()
    assert outcome.code == 0, outcome.err
    assert "an earlier attempt left no checkpoint: starting again from step 0" in outcome.err


@pytest.mark.row("B61")
def test_b61_a_checkpoint_without_manifest_is_foreign(resume, run_dir):
    (run_dir / "checkpoint-4" / "manifest.json").unlink()
    outcome = resume("--resume", run_dir / "checkpoint-4")
    assert outcome.code == 5
    assert "has no manifest, so lorafit did not write it or never finished it" in outcome.err
    assert "--import-hf-checkpoint FOLDER begins a new run from it" in outcome.err


@pytest.mark.row("F35")
def test_f35_a_foreign_checkpoint_is_neither_used_nor_deleted(resume, run_dir):
    foreign = run_dir / "checkpoint-1000"
    foreign.mkdir()
    (foreign / "optimizer.pt").write_bytes(b"mine")
    outcome = resume("--save-total-limit", "1")
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-4" in outcome.err
    assert (foreign / "optimizer.pt").read_bytes() == b"mine"
    assert {p.name for p in run_dir.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-1000"}


@pytest.mark.row("F35")
def test_f35_a_whole_checkpoint_of_another_run_is_neither_used_nor_deleted(resume, run_dir):
    foreign = shutil.copytree(run_dir / "checkpoint-4", run_dir / "checkpoint-5")
    document = json.loads((foreign / "manifest.json").read_text())
    document |= {"run_id": "another run", "step": 5}
    (foreign / "manifest.json").write_text(json.dumps(document))
    outcome = resume()
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-4" in outcome.err
    assert "checkpoint-5: belongs to another run" in outcome.err
    assert foreign.is_dir()


@pytest.mark.row("F35")
def test_f35_a_checkpoint_of_another_run_is_refused_when_it_is_named(resume, run_dir):
    path = run_dir / "checkpoint-4" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run_id": "another run"}))
    outcome = resume("--resume", run_dir / "checkpoint-4")
    assert outcome.code == 5
    assert "checkpoint-4: belongs to another run (another run)" in outcome.err


@pytest.mark.row("B62", "B67")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "is not a manifest"),
        ("[]", "is not a manifest"),
        ('{"schema_version": "x"}', "is not a manifest"),
        ({"files": {"../run.json": {"bytes": 1, "sha256": "0"}}}, "names '../run.json', which"),
        ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}}, "names '/etc/passwd', which"),
        ({"files": {"a": {"bytes": "many"}}}, "is not a manifest"),
        ({"files": ["a"]}, "is not a manifest"),
        ({"schema_version": 2}, "was written by a newer lorafit: upgrade"),
        ({"step": "four"}, "is not a manifest"),
        ({"files": {}}, "adapter_model.safetensors"),
    ],
    ids=str,
)
def test_b62_b67_a_manifest_of_another_making_is_refused(resume, run_dir, change, message):
    path = run_dir / "checkpoint-4" / "manifest.json"
    if isinstance(change, dict):
        change = json.dumps({**json.loads(path.read_text()), **change})
    path.write_text(change)
    outcome = resume("--resume", run_dir / "checkpoint-4")
    assert outcome.code == 5, outcome.err
    assert message in outcome.err


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.row("B63")
@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "rng_state.pth",
                                  "adapter_model.bin", "scheduler.pt"])  # fmt: skip
def test_b63_a_pickle_beside_the_state_is_never_opened(resume, run_dir, tmp_path, name):
    ran = tmp_path / "ran"
    (run_dir / "checkpoint-4" / name).write_bytes(pickle.dumps(Canary(ran)))
    outcome = resume()
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-4" in outcome.err
    assert not ran.exists()


@pytest.mark.row("B68")
def test_b68_folders_with_odd_names_are_ignored(resume, run_dir):
    for name in ("checkpoint-abc", "checkpoint--1", "checkpoint-0010", "checkpoint-"):
        (run_dir / name).mkdir()
    (run_dir / "checkpoint-77").write_text("a file")
    outcome = resume()
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-4" in outcome.err
    assert (run_dir / "checkpoint-0010").is_dir()


@pytest.mark.row("B68")
def test_b68_the_manifest_counts_and_not_the_name(resume, run_dir):
    (run_dir / "checkpoint-4").rename(run_dir / "checkpoint-40")
    (run_dir / "checkpoint-2").rename(run_dir / "checkpoint-99")
    outcome = resume()
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-40, the newest whole checkpoint" in outcome.err
    assert [event["step"] for event in read_events(run_dir)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.row("B67")
@pytest.mark.parametrize(("fact", "then"), [("num_devices", 2), ("compute_dtype", "bfloat16"),
                                            ("device_kind", "cuda")])  # fmt: skip
def test_b67_a_run_of_other_devices_or_another_dtype_is_not_continued(resume, run_dir, fact, then):
    path = run_dir / "run.json"
    record = json.loads(path.read_text())
    record["fingerprint"][fact] = then
    path.write_text(json.dumps(record))
    outcome = resume()
    assert outcome.code == 5, outcome.err
    assert f"{fact}  then: {then}" in outcome.err


@pytest.mark.row("B69")
@pytest.mark.parametrize("name", ["manifest.json", "optimizer.safetensors", "."])
def test_b69_a_checkpoint_that_may_not_be_read_ends_with_7(run_dir, name):
    prefix = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("tests run as root, and setpriv is not here to drop its rights")
        prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    folder = run_dir / "checkpoint-4"
    (folder / name).chmod(0)
    code = (
        "import sys, pathlib\n"
        "from lorafit.errors import LorafitError\n"
        "from lorafit.training.checkpoints.checkpoint import verify_checkpoint\n"
        "try:\n    verify_checkpoint(pathlib.Path(sys.argv[1]))\n"
        "except LorafitError as error:\n    sys.exit(f'{int(error.exit_code)} {error}')\n"
    )
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, env=child_environment(),
    )  # fmt: skip
    (folder / name).chmod(0o700)
    assert done.stderr.startswith("7 "), done.stderr
    assert str(folder) in done.stderr
    assert "cannot be read: Permission denied" in done.stderr


@pytest.mark.row("B69")
def test_b69_a_checkpoint_that_everyone_may_write_is_used_with_a_word(resume, run_dir):
    (run_dir / "checkpoint-4").chmod(0o777)
    outcome = resume()
    assert outcome.code == 0, outcome.err
    assert "checkpoint-4 may be written by everyone here: chmod -R o-w " in outcome.err


@pytest.mark.row("B69")
def test_b69_a_checkpoint_of_another_user_is_named(run_dir):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(run_dir / "checkpoint-4", 65534, -1)
    assert permission_notes(run_dir / "checkpoint-4") == [
        "checkpoint-4 belongs to another user (65534)"
    ]
    assert permission_notes(run_dir / "checkpoint-2") == []
