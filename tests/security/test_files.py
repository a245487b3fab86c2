"""Where a run writes, and who may read it."""

import os
import shutil
import stat
import sys

import pytest
from tiny import start_lorafit


def everything_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def kept():
    return {}


def run_once(train_arguments, folder, umask):
    """Train in `folder`, which also holds home, cache and temporary files; return its run."""
    places = {"HOME": "home", "HF_HOME": "hf", "LORAFIT_CACHE_DIR": "cache", "TMPDIR": "tmp",
              "XDG_CACHE_HOME": "home/.cache"}  # fmt: skip
    for place in places.values():
        (folder / place).mkdir(parents=True, exist_ok=True)
    before = os.umask(umask)
    try:
        process = start_lorafit(
            *train_arguments(folder / "work" / "run", max_steps=2, report_to="tensorboard"),
            **{name: str(folder / place) for name, place in places.items()},
        )
    finally:
        os.umask(before)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder / "work" / "run"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(
    ("umask", "file_mode", "folder_mode"),
    [(0o022, 0o644, 0o755), pytest.param(0o077, 0o600, 0o700, marks=pytest.mark.slow)],
)
def test_the_umask_alone_decides_who_may_read_a_run(
    train_arguments, tmp_path, umask, file_mode, folder_mode
):
    """Every file of a run has the mode that the person's umask asks for, none a wider one."""
    run_dir = run_once(train_arguments, tmp_path, umask)
    for path in (run_dir, *run_dir.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        expected = folder_mode if path.is_dir() else file_mode
        # A stricter file is fine, a wider one is not.
        assert mode & ~expected == 0, f"{path}: {mode:o}"
    written = {"run.json", "events.jsonl", "adapter/adapter_config.json"}
    assert written <= everything_below(run_dir)
    for name in written:
        assert stat.S_IMODE((run_dir / name).stat().st_mode) == file_mode
    assert_contained(tmp_path)


def assert_contained(folder):
    """Check that a run wrote into its own folder and its caches, and left no temporary file."""
    outside = {
        name
        for name in everything_below(folder)
        if not name.startswith(("work/run", "cache/", "hf/"))
    }
    assert outside <= {"work", "home", "home/.cache", "cache", "hf", "tmp"}, outside
    assert not [name for name in everything_below(folder / "work") if ".staging" in name]


@pytest.mark.row("B11")
def test_links_in_the_output_folder_are_not_followed_out_of_it(
    run_lorafit, train_arguments, tmp_path
):
    """A staging name that leads elsewhere does not take what lies there along."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("years of work")
    run_dir = tmp_path / "run"
    assert run_lorafit(*train_arguments(run_dir, max_steps=2)).code == 0
    for name in ("adapter", "checkpoint-2"):
        shutil.rmtree(run_dir / name)
    for name in (".staging-adapter", ".staging-checkpoint-2", ".staging-x"):
        (run_dir / name).symlink_to(elsewhere)
    record = run_dir / "run.json"
    record.write_text(record.read_text().replace('"completed"', '"interrupted"'))
    outcome = run_lorafit(*train_arguments(run_dir, max_steps=2))
    assert (elsewhere / "thesis.txt").read_text() == "years of work"
    assert outcome.code in (0, 7), outcome.err
    assert everything_below(elsewhere) == {"thesis.txt"}


@pytest.mark.row("B54", "B62")
@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "./a", "a/"])
def test_names_in_files_stay_in_their_folder(tmp_path, name):
    """A manifest and an index may name the files beside them, and nothing else."""
    import json

    from lorafit.errors import CheckpointError, ModelError
    from lorafit.model.weights import read_weight_files
    from lorafit.training.checkpoints.checkpoint import verify_checkpoint

    files = {name: {"bytes": 1, "sha256": "0"}}
    manifest = {"schema_version": 1, "step": 1, "run_id": "x", "files": files}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        verify_checkpoint(tmp_path)
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError):
        read_weight_files(tmp_path)
