"""Checks of the preset, model and data that were asked about, on tiny real ones."""

import hashlib
import json

import pytest

from lorafit.doctor.hashes import recorded_hash, verify_hash
from lorafit.doctor.question import Question

from .conftest import A10

ASKED = ("preset.fit", "model.files", "model.hash", "tokenizer", "data.file", "selftest")


def test_what_was_not_asked_about_is_skipped_and_says_which_option_asks(run_check):
    for check_id in ASKED:
        outcome = run_check(check_id)
        assert outcome.status == "skip"
        assert outcome.detail.startswith("only with --")


def test_a_whole_model_is_counted(run_check, tiny_model):
    question = Question(model=str(tiny_model()))
    outcome = run_check("model.files", question=question)
    assert outcome.status == "ok", outcome.detail
    assert "float32 in 1 file; whole, no code" in outcome.detail
    assert run_check("model.hash", question=question).status == "skip"


def test_a_cut_off_model_and_one_with_code_are_errors(run_check, own_model):
    folder = own_model()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    outcome = run_check("model.files", question=Question(model=str(folder)))
    assert outcome.status == "error"
    assert "its header announces" in outcome.detail
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    outcome = run_check("model.files", question=Question(model=str(folder)))
    assert "run code of its own" in outcome.detail


def test_a_hub_model_that_is_not_here_is_not_fetched_but_the_line_is_given(run_check):
    outcome = run_check("model.files", question=Question(model="someone/some-model"))
    assert outcome.status == "error"
    assert outcome.commands[0].startswith("hf download someone/some-model")


def test_a_snapshot_in_the_hub_cache_is_found_and_its_hashes_are_verified(
    run_check, own_model, tmp_path
):
    repository = tmp_path / "hf/hub/models--someone--tiny"
    snapshot, blobs = repository / "snapshots" / "c0ffee", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    for file in own_model().iterdir():
        content = file.read_bytes()
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(blob)
    question = Question(model="someone/tiny")
    assert run_check("model.files", question=question).status == "ok"
    assert run_check("model.hash", question=question).status == "ok"
    weights = (snapshot / "model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    outcome = run_check("model.hash", question=question)
    assert outcome.status == "error"
    assert outcome.detail == "changed since the download: model.safetensors"


def test_hashes_beside_a_local_download_are_read_in_both_forms(tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b"hello")
    assert recorded_hash(file) is None
    records = tmp_path / ".cache/huggingface/download"
    records.mkdir(parents=True)
    # `printf hello | git hash-object --stdin` and `printf hello | sha256sum`
    known = (
        "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    )
    for number in known:
        (records / "config.json.metadata").write_text(f"abc123\n{number}\n1700000000.0\n")
        assert recorded_hash(file) == number
        assert verify_hash(file, number)
        file.write_bytes(b"hellp")
        assert not verify_hash(file, number)
        file.write_bytes(b"hello")


def test_a_tokenizer_round_trip_is_made(run_check, tiny_model, quiet_libraries):
    outcome = run_check("tokenizer", question=Question(model=str(tiny_model())))
    assert outcome.status == "ok", outcome.detail
    assert "embeddings" in outcome.detail
    assert "text comes back" in outcome.detail


def test_a_tokenizer_larger_than_the_embedding_is_an_error(run_check, own_model, quiet_libraries):
    folder = own_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    outcome = run_check("tokenizer", question=Question(model=str(folder)))
    assert outcome.status == "error"
    assert "the model embeds 100" in outcome.detail


def test_data_is_counted_in_characters_and_with_a_model_in_tokens(
    run_check, tiny_data, tiny_model, quiet_libraries
):
    outcome = run_check("data.file", question=Question(data=str(tiny_data)))
    assert outcome.status == "ok", outcome.detail
    assert (outcome.measured, "characters a row" in outcome.detail) == ("20 rows", True)
    question = Question(data=str(tiny_data), model=str(tiny_model()))
    assert "token" in run_check("data.file", question=question).detail


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("bad.jsonl", '{"prompt": "a", "completion": 1}\n', "bad.jsonl:1"),
        ("no.jsonl", None, "no.jsonl"),
    ],
)
def test_wrong_data_is_an_error_with_its_line(run_check, tmp_path, name, content, text):
    if content is not None:
        (tmp_path / name).write_text(content)
    outcome = run_check("data.file", question=Question(data=str(tmp_path / name)))
    assert outcome.status == "error"
    assert text in outcome.detail


def test_a_hub_data_set_is_not_fetched(run_check):
    assert run_check("data.file", question=Question(data="owner/name")).status == "skip"


def test_the_preset_asked_for_is_traced_on_this_machine(run_check, tiny_model, quiet_libraries):
    question = Question(preset="quick-test", model=str(tiny_model()))
    outcome = run_check("preset.fit", A10, question=question)
    assert outcome.status == "ok", outcome.detail
    assert ", traced; " in outcome.detail


@pytest.mark.slow
def test_a_tiny_model_is_trained_killed_and_resumed_to_the_same_bits(run_check):
    outcome = run_check("selftest", question=Question(is_deep=True), timeout_seconds=300.0)
    assert outcome.status == "ok", outcome.detail
    assert "equal to the last bit" in outcome.detail


def test_a_self_test_that_cannot_start_is_an_error_with_the_cause(run_check):
    outcome = run_check("selftest", question=Question(is_deep=True), python="/bin/false")
    assert outcome.status == "error"
    assert "the whole run failed: exit code 1" in outcome.detail
