"""`lorafit evaluate` and `lorafit generate`, on a base and on an adapter."""

import io
import json
import math
import shutil

import pytest
from tiny import colour_rows, write_jsonl


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def adapter(kept, run_lorafit, train_arguments, tmp_path_factory):
    """An adapter trained through templates, beside its run.json."""
    if "adapter" not in kept:
        folder = tmp_path_factory.mktemp("kept")
        data = write_jsonl(
            folder / "rows.jsonl",
            [{"thing": f"thing {i}", "label": c} for i, c in enumerate(["red", "blue"] * 8)],
        )
        outcome = run_lorafit(
            *train_arguments(
                folder / "run",
                data=data,
                max_steps=30,
                save_steps=100,
                prompt_template="Which colour is {thing}?",
                completion_template=" {label}",
            )
        )
        assert outcome.code == 0, outcome.err
        kept["adapter"] = folder / "run" / "adapter"
    return kept["adapter"]


@pytest.fixture
def questions(tmp_path):
    rows = [{"thing": f"thing {i}", "label": c} for i, c in enumerate(["red", "blue", "red"], 50)]
    return write_jsonl(tmp_path / "questions.jsonl", rows)


def test_an_adapter_remembers_its_model_and_templates(run_lorafit, adapter, questions):
    outcome = run_lorafit(
        *("evaluate", "--adapter", adapter, "--data", questions, "--device", "cpu", "--json"),
        *("--max-new-tokens", "6"),
    )
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["schema_version"] == 1
    assert document["adapter"] == str(adapter)
    assert document["rows"] == 3
    assert document["perplexity"] == pytest.approx(math.exp(document["loss"]))
    # 30 steps on two one-word answers teach at least to answer with one of them.
    assert document["answered"] == 1.0
    assert 0 <= document["accuracy"] <= 1
    assert document["f1_by_label"].keys() == {"red", "blue"}
    assert sum(sum(row.values()) for row in document["confusion"].values()) == 3


def test_the_words_say_the_same_and_answers_are_written(run_lorafit, adapter, questions, tmp_path):
    answers = tmp_path / "answers.jsonl"
    outcome = run_lorafit(
        *("evaluate", "--adapter", adapter, "--data", questions, "--device", "cpu"),
        *("--max-new-tokens", "6", "--answers", answers),
    )
    assert outcome.code == 0, outcome.err
    assert "loss " in outcome.out
    assert "accuracy " in outcome.out
    assert "macro-F1 " in outcome.out
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 3
    assert rows[0]["prompt"].startswith("Which colour is thing 50?")
    assert rows[0]["label"] == "red"


def test_training_lowers_the_loss_that_evaluate_measures(
    run_lorafit, adapter, questions, tiny_model
):
    templates = ("--prompt-template", "Which colour is {thing}?", "--completion-template",
                 " {label}")  # fmt: skip
    common = ("--data", questions, "--device", "cpu", "--json", "--max-new-tokens", "1")
    base = run_lorafit("evaluate", "--model", tiny_model(), *common, *templates)
    tuned = run_lorafit("evaluate", "--adapter", adapter, *common)
    assert base.code == tuned.code == 0, base.err + tuned.err
    assert json.loads(base.out)["adapter"] is None
    assert json.loads(tuned.out)["loss"] < json.loads(base.out)["loss"]


def test_rows_without_labels_get_a_loss_and_a_sentence(run_lorafit, tiny_model, tmp_path):
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in colour_rows(5)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    outcome = run_lorafit(
        "evaluate", "--model", tiny_model(), "--data", data, "--device", "cpu", "--max-length", 64
    )
    assert outcome.code == 0, outcome.err
    assert "(15 tokens" not in outcome.out
    assert "of 5 rows)" in outcome.out
    assert "rows have no label, so there is no accuracy" in outcome.err


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "this is a folder, not a file"), ("locked/answers.jsonl", "there is no folder ")],
)
def test_answers_that_cannot_be_written_are_said(
    run_lorafit, adapter, questions, tmp_path, name, reason
):
    (tmp_path / "locked").write_text("a file")
    outcome = run_lorafit(
        *("evaluate", "--adapter", adapter, "--data", questions, "--device", "cpu"),
        *("--max-new-tokens", "1", "--answers", tmp_path / name),
    )
    assert outcome.code == 7
    assert f"{tmp_path / name}: {reason}" in outcome.err


def test_generate_prints_text_on_stdout_and_json_on_request(run_lorafit, adapter):
    common = ("generate", "--adapter", adapter, "--device", "cpu", "--max-new-tokens", "4")
    prompts = ("--prompt", "Which colour is thing 1?", "--prompt", "Which colour is thing 2?")
    text = run_lorafit(*common, *prompts)
    assert text.code == 0, text.err
    assert len(text.out.splitlines()) == 2
    document = json.loads(run_lorafit(*common, *prompts, "--json").out)
    assert document["schema_version"] == 1
    assert [row["prompt"] for row in document["results"]] == [prompts[1], prompts[3]]
    assert "\n".join(row["text"] for row in document["results"]) + "\n" == text.out


def test_generate_reads_files_and_stdin(run_lorafit, adapter, tmp_path, monkeypatch):
    common = ("generate", "--adapter", adapter, "--device", "cpu", "--max-new-tokens", "2")
    lines = tmp_path / "prompts.txt"
    lines.write_text("the colour\n\nis red\n", encoding="utf-8-sig")
    rows = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the colour"}, {"prompt": "is red"}])
    from_lines = run_lorafit(*common, "--prompt-file", lines)
    from_rows = run_lorafit(*common, "--prompt-file", rows)
    typed = io.TextIOWrapper(io.BytesIO(b"the colour\nis red\n"))
    monkeypatch.setattr("sys.stdin", typed)
    from_stdin = run_lorafit(*common, "--prompt-file", "-")
    assert from_lines.code == 0, from_lines.err
    assert from_lines.out == from_rows.out == from_stdin.out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}\n', "p.jsonl:2: has no `prompt` text"),
        ("not json\n", "p.jsonl:1: has no `prompt` text"),
        ('{"prompt": 3}\n', "p.jsonl:1: has no `prompt` text"),
        ("[1]\n", "p.jsonl:1: has no `prompt` text"),
    ],
)
def test_a_bad_prompt_file_names_its_line(run_lorafit, adapter, tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    outcome = run_lorafit("generate", "--adapter", adapter, "--prompt-file", tmp_path / "p.jsonl")
    assert outcome.code == 3
    assert message in outcome.err


def test_a_prompt_file_that_cannot_be_read_is_named(run_lorafit, adapter, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xe9")
    reasons = {
        "missing.txt": ": cannot be read: No such file or directory",
        "latin.txt": ":1: not UTF-8: byte 0xff at offset 0",
        "": ": is not a regular file",
    }
    for name, reason in reasons.items():
        path = tmp_path / name
        outcome = run_lorafit("generate", "--adapter", adapter, "--prompt-file", path)
        assert outcome.code == 3
        assert f"{path}{reason}" in outcome.err


@pytest.mark.parametrize("more", [(), ("--prompt", ""), ("--prompt", "  ")])
def test_no_prompt_is_a_usage_error(run_lorafit, more):
    outcome = run_lorafit("generate", *more)
    assert outcome.code == 2
    assert "no prompt was given" in outcome.err


def test_an_adapter_without_its_run_needs_the_model(run_lorafit, adapter, tiny_model, tmp_path):
    alone = shutil.copytree(adapter, tmp_path / "alone")
    common = ("--adapter", alone, "--device", "cpu", "--prompt", "the", "--max-new-tokens", "2")
    outcome = run_lorafit("generate", *common, "--model", tiny_model())
    assert outcome.code == 0, outcome.err


def test_what_the_command_line_says_wins_over_what_the_run_was(run_lorafit, adapter, tmp_path):
    outcome = run_lorafit(
        *("generate", "--adapter", adapter, "--model", tmp_path / "other", "--prompt", "x")
    )
    assert outcome.code == 3
    assert f"there is no model folder {tmp_path / 'other'}" in outcome.err


@pytest.mark.row("B3")
def test_b3_an_empty_adapter_is_refused(run_lorafit):
    for command in (["evaluate", "--data", "x"], ["generate", "--prompt", "x"]):
        outcome = run_lorafit(*command, "--adapter", "")
        assert outcome.code == 2
        assert "--adapter is empty" in outcome.err


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 3}', '{"settings": {"model": 1}}',
                                     '{"settings": {"model": {"value": ""}}}'])  # fmt: skip
def test_a_damaged_run_record_does_no_harm(run_lorafit, adapter, tiny_model, tmp_path, content):
    shutil.copytree(adapter, tmp_path / "run" / "adapter")
    (tmp_path / "run" / "run.json").write_text(content)
    outcome = run_lorafit(
        *("generate", "--adapter", tmp_path / "run" / "adapter", "--model", tiny_model()),
        *("--device", "cpu", "--prompt", "x", "--max-new-tokens", "1"),
    )
    assert outcome.code in (0, 3), outcome.err
    assert "bug" not in outcome.err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "--prompt", "x", "--adapter"], "there is no adapter folder nowhere"),
        (["evaluate", "--data", "x.jsonl", "--adapter"], "there is no adapter folder nowhere"),
        (["chat"], "there is no adapter folder nowhere/adapter"),
    ],
)
def test_a_missing_adapter_is_said_before_a_base_model_is_looked_for(
    run_lorafit, tmp_path, monkeypatch, command, message
):
    monkeypatch.chdir(tmp_path)
    outcome = run_lorafit(*command, "nowhere")
    assert outcome.code == 3
    assert message in outcome.err
    assert "phi-2" not in outcome.err


def test_a_model_given_for_an_adapter_or_a_run_is_told_from_them(run_lorafit, tiny_model):
    folder = tiny_model()
    outcome = run_lorafit("generate", "--prompt", "x", "--adapter", folder)
    assert outcome.code == 3
    assert f"this is a model and no adapter: --model {folder}" in outcome.err
    outcome = run_lorafit("chat", folder)
    assert outcome.code == 3
    assert f"is a model and no run: --model {folder}" in outcome.err


def test_an_adapter_from_elsewhere_names_its_base_itself(run_lorafit, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "theirs")
    words = ("generate", "--adapter", tmp_path / "theirs", "--device", "cpu", "--prompt", "x")
    outcome = run_lorafit(*words, "--max-new-tokens", "1")
    assert outcome.code == 0, outcome.err
    config = tmp_path / "theirs" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": 3}))
    outcome = run_lorafit(*words)
    assert outcome.code == 3
    assert "the model microsoft/phi-2 is not on this machine" in outcome.err
