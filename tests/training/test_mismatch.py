"""What a refused continuation says: what has changed, and what to type."""

import json

import pytest

from lorafit.errors import CheckpointError
from lorafit.training.run_folder.fingerprint import require_same_run
from lorafit.training.run_folder.mismatch import Mismatch, Origins, short_value

HERE = Origins("rows.jsonl", 20, "models/phi")
FACTS = {
    "seed": 42, "learning_rate": 2e-4, "lora_r": 8, "double_quant": True, "prompt_template": None,
    "target_modules": ["q_proj", "fc1"], "micro_batch": 2, "accumulation": 3, "num_devices": 1,
    "micro_batch_tokens": 64, "padding_free": True, "total_steps": 9, "warmup_steps": 1,
    "num_train_rows": 18, "device_kind": "cpu", "data_sha256": "a" * 64,
    "base_config_sha256": "b" * 64, "base_weights": ["c" * 64],
    "tokenizer_sha256": {"tokenizer.json": "d" * 64, "vocab.json": "e" * 64},
    "reward_file_sha256": "f" * 64,
}  # fmt: skip


def refusal(now=HERE, then=HERE, **changes):
    """Return message and hint of a command whose facts differ in `changes`."""
    with pytest.raises(CheckpointError) as caught:
        require_same_run(FACTS, {**FACTS, **changes}, "run", origins=(then, now))
    assert caught.value.exit_code == 5
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_that_changed_is_a_line_without_a_digest(name):
    message, hint = refusal(**{name: 99 if name == "total_steps" else "other"})
    assert f"\n  {name}  " in message
    assert not any(letter * 12 in message + hint for letter in "abcdef")
    assert "another --output-dir to start afresh" in hint


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"data_sha256": "0", "num_train_rows": 19}, "other data;"),
        ({"seed": 1}, "other settings;"),
        ({"tokenizer_sha256": {}}, "other base model;"),
        (
            {"data_sha256": "0", "base_weights": [], "seed": 1},
            "other data, base model and settings;",
        ),
    ],
)
def test_the_headline_names_what_is_other(changes, subject):
    assert f"this folder holds a run with {subject}" in refusal(**changes)[0]


@pytest.mark.parametrize(
    ("changes", "typed"),
    [
        ({"seed": 1, "learning_rate": 1.0}, "--learning-rate 0.0002 --seed 42 to continue"),
        ({"micro_batch": 1, "micro_batch_tokens": 32}, "--per-device-train-batch-size 2 to"),
        ({"accumulation": 6}, "--gradient-accumulation-steps 3 to continue"),
        ({"double_quant": False}, "--double-quant to continue"),
        ({"target_modules": ["fc1"]}, "--target-modules q_proj,fc1 to continue"),
        ({"padding_free": False}, "--padding-free true to continue"),
        ({"device_kind": "cuda"}, "--device cpu to continue"),
        ({"warmup_steps": 2}, "--warmup-steps 1 to continue"),
        # No flag takes a template away, and none gives a number of processes.
        ({"prompt_template": "x"}, "use the settings of then to continue"),
        ({"num_devices": 2}, "use the settings of then to continue"),
        ({"total_steps": 12, "warmup_steps": 2}, "use the settings of then to continue"),
    ],
)
def test_the_hint_is_what_continues_the_run_as_it_was(changes, typed):
    assert refusal(**changes)[1].startswith(typed)


@pytest.mark.parametrize(
    ("now", "words", "typed"),
    [
        (HERE, "rows.jsonl with 20 rows, of other content", "restore rows.jsonl to"),
        (Origins("rows.jsonl", 21), "rows.jsonl with 20 rows then, 21", "restore rows.jsonl to"),
        (Origins("b c.jsonl", 5), "is b c.jsonl with 5 rows, and was rows", "--data rows.jsonl to"),
    ],
)
def test_changed_data_is_told_with_its_name_and_rows(now, words, typed):
    message, hint = refusal(now=now, data_sha256="0")
    assert words in message
    assert hint.startswith(typed)


def test_another_base_model_is_told_from_changed_weights():
    message, hint = refusal(now=Origins(model="models/other"), base_weights=["0"])
    assert "base_weights  the base model is models/other, and was models/phi" in message
    assert hint.startswith("--model models/phi to continue")
    message, hint = refusal(base_weights=["0"])
    assert "base_weights  the weights have changed in models/phi" in message
    assert hint.startswith("restore models/phi to continue")


def test_of_a_tokenizer_the_changed_files_are_named():
    files = {**FACTS["tokenizer_sha256"], "vocab.json": "0", "merges.txt": "1"}
    message, _ = refusal(tokenizer_sha256=files)
    assert "the tokenizer has changed in models/phi: merges.txt, vocab.json" in message


@pytest.mark.parametrize(
    ("now", "way"),
    [(12, "--extend 12steps makes it longer"), (7, "can be made longer, with --extend, but not")],
)
def test_another_length_names_the_very_flag(now, way):
    assert way in refusal(total_steps=now)[1]


def test_long_texts_are_shown_from_where_they_differ():
    then, now = ("Answer as a pirate would, and be brief about it. {prompt}" + end for end in "ab")
    words = Mismatch({"prompt_template": (then, now)}, HERE, HERE).words("prompt_template")
    assert words == "then: …. {prompt}a  now: …. {prompt}b"


def test_a_record_that_says_nothing_is_refused_all_the_same():
    message, hint = refusal(then=Origins.of_record({"plan": [], "settings": {"data": 3}}),
                            data_sha256="0", base_weights=[])  # fmt: skip
    assert "data_sha256   the data has changed" in message
    assert "base_weights  the weights have changed in the base model" in message
    assert hint.startswith("use the settings of then")


def test_what_a_record_says_cannot_steer_the_terminal():
    hostile = "\x1b]0;x\x07\u202e"
    record = {"settings": {"data": {"value": hostile}, "model": {"value": hostile}}}
    before = {**FACTS, hostile: hostile, "data_sha256": "", "seed": hostile, "base_weights": []}
    with pytest.raises(CheckpointError) as caught:
        require_same_run(before, FACTS, "run", origins=(Origins.of_record(record), HERE))
    shown = f"{caught.value}{caught.value.hint}"
    assert "--allow-mismatch" not in shown  # a fact that this release does not know
    assert not any(char in shown for char in hostile[:1] + hostile[-2:])


def test_the_origins_are_those_of_a_record():
    record = {
        "settings": {"data": {"value": "a.jsonl"}, "model": {"value": "m"}},
        "plan": {"data": {"training": {"rows_read": 7}}},
    }
    assert Origins.of_record(json.loads(json.dumps(record))) == Origins("a.jsonl", 7, "m")


def test_a_cell_holds_the_beginning_of_a_digest():
    assert short_value("a" * 64) == "a" * 12
    assert short_value(["a" * 64, "b" * 64]) == f"{'a' * 12}, {'b' * 12}"
    assert short_value({"x.json": "c" * 64}) == f"x.json {'c' * 12}"
    assert short_value(None) == "none"
    assert short_value(0.1) == "0.1"
