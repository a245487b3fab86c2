"""Rows B11 to B13: the output folder that cannot be one."""

import os
import shlex

import pytest


@pytest.mark.row("B11")
def test_b11_a_folder_with_something_else_is_refused_and_left_alone(
    run_lorafit, train_arguments, tmp_path
):
    run_dir = tmp_path / "thesis"
    run_dir.mkdir()
    (run_dir / "chapter-1.txt").write_text("years of work")
    (run_dir / "checkpoint-1000").mkdir()
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 7
    assert "the folder holds something else: chapter-1.txt, checkpoint-1000" in outcome.err
    assert "choose a new or empty --output-dir; nothing was changed" in outcome.err
    assert sorted(path.name for path in run_dir.iterdir()) == ["chapter-1.txt", "checkpoint-1000"]


@pytest.mark.row("B11")
def test_b11_a_file_is_refused(run_lorafit, train_arguments, tmp_path):
    (tmp_path / "run").write_text("a file")
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 7
    assert f"{tmp_path / 'run'}: this is not a folder, and a run needs one" in outcome.err


@pytest.mark.row("B11")
def test_b11_a_parent_that_is_a_file_is_refused(run_lorafit, train_arguments, tmp_path):
    (tmp_path / "file").write_text("a file")
    outcome = run_lorafit(*train_arguments(tmp_path / "file" / "run"))
    assert outcome.code == 7
    assert str(tmp_path / "file") in outcome.err


@pytest.mark.row("B11")
def test_b11_an_empty_folder_is_fine(run_lorafit, train_arguments, tmp_path):
    (tmp_path / "run").mkdir()
    assert run_lorafit(*train_arguments(tmp_path / "run", max_steps=2)).code == 0


@pytest.mark.row("B11")
@pytest.mark.parametrize("existing", [True, False])
def test_b11_a_folder_without_permission_is_refused(
    run_lorafit, train_arguments, tmp_path, monkeypatch, existing
):
    # Access is denied by hand: tests may run as root, to whom everything is allowed.
    run_dir = tmp_path / "locked" / "run"
    (run_dir if existing else run_dir.parent).mkdir(parents=True)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **more: "locked" not in str(path) and access(path, mode)
    )
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 7
    expected = "the folder cannot be written to" if existing else "no folder can be made in"
    assert expected in outcome.err


@pytest.mark.row("B12")
def test_b12_the_folder_of_the_base_model_is_refused(
    run_lorafit, train_arguments, own_model, tmp_path
):
    model = own_model()
    outcome = run_lorafit(*train_arguments(model, model=model))
    assert outcome.code == 2
    assert "is the folder of the base model, which would be mixed up" in outcome.err


@pytest.mark.row("B12")
def test_b12_the_folder_of_the_data_is_refused(run_lorafit, train_arguments, tiny_data):
    before = sorted(tiny_data.parent.iterdir())
    outcome = run_lorafit(*train_arguments(tiny_data.parent))
    assert outcome.code == 2
    assert "is the folder of the training data" in outcome.err
    assert sorted(tiny_data.parent.iterdir()) == before


@pytest.mark.row("B12")
def test_b12_a_folder_inside_of_the_base_model_is_its_own(
    run_lorafit, train_arguments, own_model, tmp_path
):
    model = own_model()
    outcome = run_lorafit(*train_arguments(model / "run", model=model, max_steps=2))
    assert outcome.code == 0, outcome.err


@pytest.mark.row("B13")
def test_b13_a_symlink_loop_is_refused(run_lorafit, train_arguments, tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for run_dir in (tmp_path / "a", tmp_path / "a" / "run"):
        outcome = run_lorafit(*train_arguments(run_dir))
        assert outcome.code == 7, outcome.err


@pytest.mark.row("B13")
@pytest.mark.parametrize("name", ["x" * 300, "nul\0nul"])
def test_b13_a_name_that_no_file_system_takes_is_refused(
    run_lorafit, train_arguments, tmp_path, name
):
    outcome = run_lorafit(*train_arguments(tmp_path / name))
    assert outcome.code in (2, 7), outcome.err
    assert "error: " in outcome.err


@pytest.mark.row("B13")
@pytest.mark.parametrize("name", ["with spaces", "émoji 🦜", "-dash"])
def test_b13_odd_names_work(run_lorafit, train_arguments, tmp_path, name):
    outcome = run_lorafit(*train_arguments(tmp_path / name, max_steps=2))
    assert outcome.code == 0, outcome.err
    adapter = tmp_path / name / "adapter"
    assert (adapter / "adapter_config.json").is_file()
    assert f"lorafit evaluate --adapter {shlex.quote(str(adapter))} --data FILE" in outcome.err


@pytest.mark.row("B13")
def test_b13_a_name_that_is_not_utf8_is_refused(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(*train_arguments(tmp_path / os.fsdecode(b"latin-\xe9")))
    assert outcome.code == 7
    assert outcome.err.startswith("error: flag --output-dir: '")
    assert "latin-\\udce9' is not UTF-8, so it could not be recorded" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.row("B13")
def test_b13_control_characters_of_a_name_never_reach_the_terminal(
    run_lorafit, train_arguments, tmp_path
):
    outcome = run_lorafit(*train_arguments(tmp_path / "a\x1b[2Jb", max_steps=2))
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.err


def test_a_record_that_cannot_be_read_is_not_overwritten(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "run.json").write_text('{"run_id": "x"')
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 5
    assert "cannot be read as the record of a run" in outcome.err
    assert (run_dir / "run.json").read_text() == '{"run_id": "x"'
