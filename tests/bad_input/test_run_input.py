"""Rows of the matrix that only show in a whole run: data, folders and what they become."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from tiny import END, child_environment, colour_rows, write_jsonl

from lorafit.data.problems import Problems
from lorafit.data.reading import iterate_rows
from lorafit.data.sources import resolve_source


@pytest.fixture
def plan(run_lorafit, train_arguments, tmp_path):
    """Return a function that plans a run on rows, and what the command said."""

    def plan(rows, *more, code=0, **changes):
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        arguments = train_arguments(tmp_path / "run", "--dry-run", *more, data=data, **changes)
        outcome = run_lorafit(*arguments)
        assert outcome.code == code, outcome.err
        assert not (tmp_path / "run").exists()
        return " ".join(outcome.err.split())

    return plan


# -- Paths and folders


@pytest.fixture
def as_plain_user():
    """Return the prefix of a command that takes root's right to open everything away."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("tests run as root, and setpriv is not here to drop its rights")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


@pytest.fixture
def run_plain(as_plain_user):
    def run(*arguments):
        done = subprocess.run(
            [*as_plain_user, sys.executable, "-m", "lorafit", *map(str, arguments)],
            capture_output=True, text=True, env=child_environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Traceback" not in done.stdout + done.stderr
        return done.returncode, done.stderr

    return run


@pytest.mark.row("B11")
def test_b11_a_folder_that_may_not_be_written_is_refused(run_plain, train_arguments, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    code, err = run_plain(*train_arguments(locked / "run"))
    assert code == 7, err
    assert f"no folder can be made in {locked}" in err
    assert not list(locked.iterdir())


@pytest.mark.row("B11")
def test_b11_the_root_of_a_git_repository_is_refused(run_lorafit, train_arguments, tmp_path):
    (tmp_path / "project" / ".git").mkdir(parents=True)
    outcome = run_lorafit(*train_arguments(tmp_path / "project"))
    assert outcome.code == 7
    assert "the folder holds something else: .git" in outcome.err


@pytest.mark.row("B11")
def test_b11_a_disk_without_room_for_the_checkpoints_is_refused(
    run_lorafit, train_arguments, tmp_path
):
    unshare = shutil.which("unshare")
    ask = ["unshare", "-rm", "true"]
    if unshare is None or subprocess.run(ask, capture_output=True, check=False).returncode:
        pytest.skip("namespaces of one's own, which give a tiny disk, are not allowed here")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", "lorafit", *train_arguments(disk / "run")]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k none "$0" && exec "$@"',
         str(disk), *command],
        capture_output=True, text=True, env=child_environment(),
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "checkpoints and adapter need " in done.stderr
    assert "but only 64.0 KiB are free" in done.stderr


@pytest.mark.row("B11", "B12")
def test_b11_an_unusable_folder_is_found_before_a_model_is_looked_for(
    run_lorafit, train_arguments, tmp_path, tiny_data
):
    (tmp_path / "file").write_text("mine")
    for folder, code in ((tmp_path / "file", 7), (tiny_data.parent, 2)):
        outcome = run_lorafit(*train_arguments(folder, model="owner/a-model-not-here"))
        assert outcome.code == code, outcome.err
        assert "a-model-not-here" not in outcome.err


@pytest.mark.row("B14")
def test_b14_a_missing_checkpoint_is_found_before_a_model_is_looked_for(
    run_lorafit, train_arguments, tmp_path
):
    outcome = run_lorafit(
        *train_arguments(tmp_path / "run", "--resume", "nowhere", model="owner/a-model-not-here")
    )
    assert outcome.code == 5
    assert "there is no checkpoint folder nowhere" in outcome.err


@pytest.mark.row("B36")
def test_b36_a_file_that_may_not_be_read_is_refused(run_plain, tmp_path):
    path = write_jsonl(tmp_path / "secret.jsonl", colour_rows(3))
    path.chmod(0)
    code, err = run_plain("data", "inspect", path)
    assert code == 3, err
    assert f"{path}: no permission to read this file" in err
    assert f"chmod u+r '{path}'" in err


# -- Rows


@pytest.mark.row("B36")
def test_b36_one_row_is_trained_on_with_a_warning(plan):
    assert "has one usable row: a model can only learn it by heart" in plan(colour_rows(1))


@pytest.mark.row("B37")
@pytest.mark.parametrize(
    "line", ['{"text": "a",}', "{'text': 'a'}", '{"text": "a"} {"text": "b"}', '{"text": "a']
)
def test_b37_a_broken_line_ends_the_command_with_its_place(
    run_lorafit, train_arguments, tmp_path, line
):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "good"}\n' + line)
    outcome = run_lorafit(*train_arguments(tmp_path / "run", data=data))
    assert outcome.code == 3
    assert outcome.err.startswith(f"error: {data}:2:")
    assert not (tmp_path / "run").exists()


@pytest.mark.row("B43")
def test_b43_rows_that_are_cut_are_counted_with_what_would_keep_them(plan):
    rows = [{"prompt": "a", "completion": f"{index} " + "b " * 100} for index in range(5)]
    said = plan([*rows, *colour_rows(5)])
    assert "cut to max_length 64, their end is lost: 5 of 10 rows" in said
    assert "--max-length" in said


@pytest.mark.row("B43")
def test_b43_prompts_that_leave_nothing_to_learn_are_dropped_up_to_a_share(plan):
    long = {"prompt": "a " * 100, "completion": "b"}
    assert "1 dropped with nothing to learn" in plan([long, *colour_rows(12)])
    said = plan([long] * 3 + colour_rows(12), code=3)
    assert "3 of 15 rows have nothing to learn" in said
    assert "whose prompt alone fills max_length 64" in said
    assert "--max-dropped (now 0.1)" in said
    assert "no row is left" in plan([long] * 3, "--max-dropped", "1.0", code=3)


@pytest.mark.row("B45")
def test_b45_a_special_token_in_the_text_is_counted_and_named(plan):
    rows = [{"prompt": "a", "completion": f"{index} {END} b"} for index in range(5)]
    said = plan([*colour_rows(5), *rows])
    assert "with a special token written out in the text" in said
    assert f"5 of 10 rows; the first is {END} in " in said
    assert "rows.jsonl:6" in said


@pytest.mark.row("B46")
def test_b46_validation_rows_that_are_trained_on_are_counted(plan, tmp_path):
    rows = colour_rows(8)
    again = write_jsonl(tmp_path / "again.jsonl", rows[:3])
    said = plan(rows, "--validation-data", again)
    assert "also in the training data: 3 of 3 validation rows" in said


@pytest.mark.row("B46")
def test_b46_repeated_rows_are_counted(plan):
    said = plan([{"prompt": "a", "completion": "b"}] * 12)
    assert "repeating an earlier row, so trained on more often: 11 of 12 rows" in said


@pytest.mark.row("B47")
def test_b47_a_run_is_not_continued_on_data_that_changed(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(20))
    arguments = train_arguments(run_dir, data=data, max_steps=2)
    assert run_lorafit(*arguments).code == 0
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    write_jsonl(data, colour_rows(21))
    outcome = run_lorafit(*arguments)
    assert outcome.code == 5
    assert "data_sha256" in outcome.err


@pytest.mark.row("B48")
def test_b48_a_file_larger_than_memory_is_read_row_by_row_and_not_refused_for_its_size(
    run_lorafit, train_arguments, tmp_path
):
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(5))
    os.truncate(data, 2**43)  # 8 TiB that take no room on the disk: after 5 rows, one endless line
    outcome = run_lorafit(*train_arguments(tmp_path / "run", data=data))
    assert outcome.code == 3, outcome.err
    assert f"{data}:6: the line is longer than 16 MiB" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.row("B48")
def test_b48_reading_streams_and_holds_one_row_at_a_time(tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "many words " * 2000}) + "\n"
    with path.open("w") as file:
        file.writelines(line for _ in range(4000))
    source = resolve_source(str(path))
    assert source.path.stat().st_size > 80e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in iterate_rows(source, Problems(source.name))) == 4000
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 20_000


# -- Prompts and answers


@pytest.fixture
def generate(run_lorafit, tiny_model, tmp_path):
    def generate(*more):
        return run_lorafit(
            *("generate", "--model", tiny_model(), "--device", "cpu", "--max-length", "64"),
            *("--max-new-tokens", "2", *more),
        )

    return generate


@pytest.mark.row("B15")
@pytest.mark.parametrize("name", ["/dev/zero", "folder", "pipe"])
def test_b15_prompts_come_from_a_regular_file(generate, tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    outcome = generate("--prompt-file", tmp_path / name)
    assert outcome.code == 3
    assert "is not a regular file" in outcome.err


@pytest.mark.row("B41")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "a.txt:1: not UTF-8: byte 0xe9 at offset 3"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', "a.jsonl:1: has no `prompt` text"),
        ("a.jsonl", b'{"prompt": "x"}\n' + b"[" * 100_000, "a.jsonl:2: has no `prompt` text"),
        ("a.txt", b"x" * (16 * 1024**2 + 1), "holds more than 16.0 MiB"),
    ],
    ids=["bytes", "surrogate", "nested", "huge"],
)
def test_b41_prompts_that_no_tokenizer_reads_are_refused(
    generate, tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    outcome = generate("--prompt-file", tmp_path / name)
    assert outcome.code == 3
    assert message in outcome.err


@pytest.mark.row("B3")
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_b3_an_empty_file_name_is_not_taken_for_none(run_lorafit, tiny_data, command):
    given = {
        "generate": ("--prompt", "x", "--prompt-file", ""),
        "evaluate": ("--data", tiny_data, "--answers", ""),
    }
    outcome = run_lorafit(command, *given[command])
    assert outcome.code == 2
    assert f"{given[command][-2]} is empty" in outcome.err


@pytest.mark.row("B11")
def test_b11_answers_that_cannot_be_written_are_refused_before_the_evaluation(
    run_lorafit, tiny_data, tmp_path
):
    for path in (tmp_path, tmp_path / "missing" / "answers.jsonl"):
        outcome = run_lorafit("evaluate", "--data", tiny_data, "--answers", path)
        assert outcome.code == 7
        assert str(path) in outcome.err
