"""The work of the benchmark: rows of known lengths, one token a word, the same every time."""

import json
from pathlib import Path

import pytest
from peers import workload
from transformers import AutoTokenizer

pytestmark = pytest.mark.usefixtures("quiet_libraries")


def test_rows_have_the_lengths_of_instruction_data() -> None:
    facts = workload.row_facts(workload.row_lengths(500))
    assert facts["rows"] == 500
    assert facts["median"] == 59
    assert 85 < facts["mean"] < 100
    assert facts["max"] <= workload.MAX_LENGTH


def test_few_rows_have_the_mean_of_many() -> None:
    few, many = (workload.row_facts(workload.row_lengths(count))["mean"] for count in (40, 500))
    assert few == pytest.approx(many, rel=0.05)


def test_the_same_rows_are_made_every_time_and_more_than_half_is_completion() -> None:
    rows = workload.make_rows(60)
    assert rows == workload.make_rows(60)
    assert rows != workload.make_rows(61)[:60]
    words = [len(text.split()) for row in rows for text in row.values()]
    # The end token belongs to the completion.
    completion = sum(words[1::2]) + len(rows)
    assert completion / (sum(words) + len(rows)) == pytest.approx(0.56, abs=0.02)


def test_every_form_of_the_data_holds_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setitem(workload.SHAPES, "tiny", shape)
    workload.write_workload(tmp_path, "tiny", 20)
    made = workload.Workload(tmp_path, "tiny")
    tokenizer = AutoTokenizer.from_pretrained(made.model)

    def count(*texts: str) -> int:
        return sum(len(tokenizer(text)["input_ids"]) for text in texts) + 1

    prompts = [json.loads(line) for line in made.prompts.read_text().splitlines()]
    turns = [json.loads(line)["messages"] for line in made.messages.read_text().splitlines()]
    instructions = json.loads((made.instructions / "train.json").read_text())
    lengths = workload.row_lengths(20)
    assert [count(*row.values()) for row in prompts] == lengths
    assert [count(*(turn["content"] for turn in row)) for row in turns] == lengths
    assert [count(row["instruction"], row["output"]) for row in instructions] == lengths
    assert tokenizer.pad_token_id == 0
    assert made.facts()["tokens"] == sum(lengths)
