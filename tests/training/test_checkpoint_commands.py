"""`lorafit checkpoints`: what it shows, and that it touches nothing but what a run wrote."""

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def run_dir(kept, run_lorafit, train_arguments, tmp_path, tmp_path_factory):
    """A finished run with checkpoints at steps 1 to 6, validated at 2, 4 and 6."""
    if "run" not in kept:
        whole = tmp_path_factory.mktemp("kept") / "run"
        outcome = run_lorafit(
            *train_arguments(whole, save_steps=1, eval_steps=2, save_total_limit=9)
        )
        assert outcome.code == 0, outcome.err
        kept["run"] = whole
    return shutil.copytree(kept["run"], tmp_path / "run")


def names(run_dir):
    return sorted(path.name for path in run_dir.glob("*checkpoint-*"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_list_shows_every_checkpoint_and_the_disk_of_the_run(run_lorafit, run_dir):
    flip(run_dir / "checkpoint-3" / "optimizer.safetensors")
    (run_dir / "checkpoint-1000").mkdir()
    outcome = run_lorafit("checkpoints", "list", run_dir, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    entries = {entry["step"]: entry for entry in document["checkpoints"]}
    assert [entry["step"] for entry in document["checkpoints"]] == [1, 2, 3, 4, 5, 6, None]
    assert [step for step, entry in entries.items() if not entry["whole"]] == [3, None]
    assert "optimizer.safetensors: has changed since" in entries[3]["problem"]
    assert entries[None]["fate"] == "not this run's: kept"
    assert entries[6]["validation_loss"] is not None
    assert entries[5]["validation_loss"] is None
    assert entries[5]["loss"] > 0
    size = max(entry["num_bytes"] for entry in entries.values() if entry["num_bytes"])
    forecast = document["forecast"]
    assert forecast["num_written"] == 6
    assert forecast["unlimited_bytes"] == 6 * size
    table = run_lorafit("checkpoints", "list", run_dir)
    assert "checkpoint-1000" in table.out
    assert "6 saves of the whole run = " in table.err
    assert "checkpoint-3/optimizer.safetensors" in table.err


def test_verify_names_what_is_damaged_and_ends_with_5(run_lorafit, run_dir):
    whole = run_lorafit("checkpoints", "verify", run_dir)
    assert whole.code == 0
    assert "6 checkpoints, nothing damaged" in whole.err
    flip(run_dir / "checkpoint-2" / "rng.json")
    outcome = run_lorafit("checkpoints", "verify", run_dir, "--json")
    assert outcome.code == 5
    found = json.loads(outcome.out)["checkpoints"]
    assert [entry["whole"] for entry in found] == [True, False, True, True, True, True]
    assert "1 of 6 checkpoints cannot be used" in outcome.err
    assert run_lorafit("checkpoints", "verify", run_dir / "checkpoint-1").code == 0
    assert run_lorafit("checkpoints", "verify", run_dir / "checkpoint-2").code == 5


def test_prune_keeps_the_newest_the_best_and_what_others_wrote(run_lorafit, run_dir):
    # Make step 2 the best, and let a foreign folder lie there.
    path = run_dir / "checkpoint-2" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["validation_loss"] = 0.5
    path.write_text(json.dumps(manifest))
    (run_dir / "checkpoint-77").mkdir()
    before = names(run_dir)
    shown = run_lorafit("checkpoints", "prune", run_dir, "--keep", "2", "--dry-run")
    assert shown.code == 0, shown.err
    assert names(run_dir) == before
    assert "would delete 3 checkpoints" in shown.err
    outcome = run_lorafit("checkpoints", "prune", run_dir, "--keep", "2", "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["freed_bytes"] > 0
    assert len(document["removed"]) == 3
    assert names(run_dir) == ["checkpoint-2", "checkpoint-5", "checkpoint-6", "checkpoint-77"]
    again = run_lorafit("checkpoints", "prune", run_dir, "--keep", "2")
    assert again.code == 0
    assert "nothing to delete" in again.err


def test_diff_of_two_runs_names_the_runs_and_what_they_differ_in(run_lorafit, run_dir):
    other = shutil.copytree(run_dir, run_dir.parent / "other")
    path = other / "run.json"
    record = json.loads(path.read_text())
    record["fingerprint"] |= {"data_sha256": "0123456789abcdef" * 4, "seed": 7}
    path.write_text(json.dumps(record))
    outcome = run_lorafit("checkpoints", "diff", run_dir / "checkpoint-6", other / "checkpoint-6")
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["run/checkpoint-6", "other/checkpoint-6"] in lines
    assert ["seed", "42", "7"] in lines
    (digests,) = [line[1:] for line in lines if line[:1] == ["data_sha256"]]
    assert digests[1] == "0123456789ab"
    assert len(digests[0]) == 12


def test_diff_measures_how_far_two_checkpoints_are_apart(run_lorafit, run_dir):
    one, other = run_dir / "checkpoint-2", run_dir / "checkpoint-6"
    outcome = run_lorafit("checkpoints", "diff", one, other, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["steps"] == [2, 6]
    assert not document["equal"]
    assert "adapter_model.safetensors" in document["different_files"]
    assert len(document["tensors"]) == document["num_tensors"]
    assert document["tensors"][0]["max_difference"] > 0
    assert document["settings"] == {}
    shown = run_lorafit("checkpoints", "diff", one, other)
    assert "most different" in shown.out
    assert " layers.1.mlp.fc2.lora_B.weight" in shown.out
    assert "…" not in shown.out
    same = run_lorafit("checkpoints", "diff", one, one)
    assert "equal, bit for bit" in same.err


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_folder_that_is_not_there_is_a_usage_error(run_lorafit, tmp_path, command):
    outcome = run_lorafit("checkpoints", command, tmp_path / "nowhere")
    assert outcome.code == 2
    assert "there is no folder" in outcome.err


@pytest.mark.parametrize("command", ["list", "prune"])
def test_a_folder_without_a_run_is_refused(run_lorafit, tmp_path, command):
    outcome = run_lorafit("checkpoints", command, tmp_path)
    assert outcome.code == 5
    assert "holds no run of lorafit" in outcome.err


def test_the_best_checkpoint_is_kept_and_named(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    # So high a rate that validation gets worse after the first steps.
    outcome = run_lorafit(
        *train_arguments(run_dir, save_steps=1, eval_steps=1, save_total_limit=1, learning_rate=0.9)
    )
    assert outcome.code == 0, outcome.err
    results = json.loads((run_dir / "run.json").read_text())["results"]
    best = results["best_checkpoint"]
    assert best == f"checkpoint-{results['best_validation_step']}"
    assert set(names(run_dir)) == {best, "checkpoint-6"}
    assert f"best checkpoint: {best} (validation loss " in outcome.err


def test_the_adapter_can_be_made_of_the_best_checkpoint(run_lorafit, train_arguments, tmp_path):
    from safetensors.torch import load_file

    run_dir = tmp_path / "run"
    # Saves at step 4 only: the best is saved all the same. Without warm-up, as the adapter of a
    # step that is taken at rate 0 has no effect.
    outcome = run_lorafit(
        *train_arguments(
            run_dir, save_steps=4, eval_steps=1, save_total_limit=1, learning_rate=0.05,
            load_best_model_at_end=True, lr_scheduler_type="constant", warmup_steps=None,
        )
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    results = json.loads((run_dir / "run.json").read_text())["results"]
    best = results["best_checkpoint"]
    assert best == f"checkpoint-{results['best_validation_step']}"
    assert results["adapter_step"] == results["best_validation_step"]
    adapter = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    saved = load_file(run_dir / best / "adapter_model.safetensors")
    assert all(tensor.equal(saved[name]) for name, tensor in adapter.items())
    assert "; the adapter is of that step" in outcome.err


@pytest.mark.usefixtures("quiet_libraries")
def test_a_checkpoint_is_an_adapter_for_plain_peft(run_dir):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def logits(adapter):
        base = AutoModelForCausalLM.from_pretrained(record["settings"]["model"]["value"])
        with torch.no_grad():
            return PeftModel.from_pretrained(base, adapter)(torch.arange(1, 9)[None]).logits

    record = json.loads((run_dir / "run.json").read_text())
    assert torch.equal(logits(run_dir / "checkpoint-6"), logits(run_dir / "adapter"))
    assert not torch.equal(logits(run_dir / "checkpoint-5"), logits(run_dir / "adapter"))
    config = json.loads((run_dir / "checkpoint-5" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])


def test_an_unfinished_runs_checkpoint_can_be_tried(run_lorafit, run_dir):
    outcome = run_lorafit(
        "generate", "--adapter", run_dir / "checkpoint-3", "--prompt", "a", "--max-new-tokens", "2"
    )
    assert outcome.code == 0, outcome.err
