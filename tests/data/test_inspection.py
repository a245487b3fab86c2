import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lorafit.cli.data import app
from lorafit.config.schema import Settings
from lorafit.data.inspection import inspect_data, masked_tokens
from lorafit.errors import DataError, ModelError, UsageError


@pytest.fixture
def model_folder(tokenizer, tmp_path):
    folder = tmp_path / "model"
    tokenizer.save_pretrained(folder)
    config = {"model_type": "phi", "architectures": ["PhiForCausalLM"], "vocab_size": 400}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(*arguments: object):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_counts_characters_and_says_so_without_a_tokenizer(write_rows):
    path = write_rows([{"text": "abc"}, {"text": "abc"}])
    found = inspect_data(str(path), Settings(), None)
    assert (found.unit, found.lengths.max, found.num_duplicates) == ("characters", 3, 1)
    assert found.suggested_max_length is None
    assert found.as_dict()["counts"] is None


def test_a_long_file_without_a_tokenizer_tells_how_far_it_is(write_rows, monkeypatch):
    monkeypatch.setattr("lorafit.data.load._ROWS_A_TELLING", 2)
    path = write_rows([{"text": text} for text in ("aaa", "b", "c", "aaa", "d")])
    told = []
    found = inspect_data(str(path), Settings(), None, lambda *heard: told.append(heard))
    assert [rows for _, _, rows in told] == [2, 4]
    assert 0 < told[0][1] < told[1][1] < 1
    assert found.num_duplicates == 1


def test_masked_tokens_spell_the_row_and_mark_the_completion(tokenizer, write_rows, pairs):
    found = inspect_data(str(write_rows(pairs)), Settings(max_length=64), tokenizer)
    tokens = masked_tokens(found.dataset, 1, tokenizer)
    assert "".join(token for token, _ in tokens) == "Question 0: answer 0<|endoftext|>"
    assert "".join(token for token, learnt in tokens if learnt) == " answer 0<|endoftext|>"
    with pytest.raises(UsageError, match="there is no row 21"):
        masked_tokens(found.dataset, 21, tokenizer)


def test_command_prints_counts_histogram_and_brackets_without_colour(
    model_folder, write_rows, pairs
):
    rows = [{**row, "label": "yes" if i % 4 else "no"} for i, row in enumerate(pairs)]
    result = run(write_rows(rows), "--model", model_folder, "--max-length", 32, "--show-mask", 1)
    assert result.exception is None, result.output
    assert "20 prompt-completion rows" in result.stdout
    assert "tokens a row: p50" in result.stdout
    assert "keeps 99 %" in result.stdout
    assert "right in 75.0%" in result.stdout
    assert "█" in result.stdout or "#" in result.stdout
    marked = result.stdout.split("learnt tokens marked:")[1]
    assert marked.strip().endswith("[<|endoftext|>]")
    assert "[Q" not in marked


@pytest.mark.row("B17")
def test_b17_histogram_keeps_its_numbers_on_a_narrow_plain_terminal(write_rows, pairs, tmp_path):
    script = "import sys; from lorafit.cli.data import app; app(['inspect', sys.argv[1]])"
    environment = {**os.environ, "COLUMNS": "20", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, str(write_rows(pairs))],
        capture_output=True,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    bars = [line for line in result.stdout.splitlines() if line.endswith("#")]
    assert bars
    for line in bars:
        assert len(line) <= 20
        lengths, count, _ = line.split()
        assert "-" in lengths
        assert int(count) > 0


def test_command_prints_one_json_document(model_folder, write_rows, pairs):
    result = run(write_rows(pairs), "--model", model_folder, "--json", "--show-mask", 2)
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1
    assert (document["kind"], document["unit"]) == ("prompt-completion", "tokens")
    assert sum(bin_["count"] for bin_ in document["histogram"]) == 20
    assert [t["token"] for t in document["mask"] if t["trained"]][-1] == "<|endoftext|>"


def test_command_looks_at_the_file_before_the_model(tmp_path):
    result = run(tmp_path / "nope.jsonl", "--model", tmp_path / "nope")
    assert isinstance(result.exception, DataError)


def test_command_refuses_a_named_model_that_is_not_there(tmp_path, write_rows, pairs):
    result = run(write_rows(pairs), "--model", tmp_path / "nope")
    assert isinstance(result.exception, ModelError)


@pytest.mark.row("B3")
def test_b3_command_refuses_empty_values(write_rows, pairs):
    assert isinstance(run("").exception, UsageError)
    result = run(write_rows(pairs), "--prompt-template", "")
    assert "--prompt-template is empty" in str(result.exception)


def test_importing_the_data_modules_loads_no_heavy_library():
    script = """
import sys, lorafit.cli.data, lorafit.data.load, lorafit.data.hub, lorafit.data.collate
heavy = {"torch", "transformers", "datasets", "pyarrow", "tokenizers", "huggingface_hub"}
loaded = heavy & set(sys.modules)
sys.exit(str(loaded) if loaded else 0)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.row("B51")
def test_b51_command_escapes_what_could_steer_a_terminal(model_folder, write_rows):
    rows = [{"prompt": "a", "completion": "\x1b[2J", "label": "\x1b]0;title\x07"}] * 2
    result = run(write_rows(rows), "--model", model_folder, "--show-mask", 1)
    assert result.exception is None
    assert "\x1b" not in result.output
    assert "\\x1b" in result.stdout
