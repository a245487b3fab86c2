"""Mistral NLI with reasoning: overrides as they are typed, --gpus, and what evaluate measures."""

import json
import os

import pytest

from lorafit.cli.gpus import with_gpus
from lorafit.cli.settings_flags import RunChoices
from lorafit.errors import UsageError


@pytest.mark.parametrize(
    "typed",
    [
        ("--learning-rate", "1e-4", "--batch-size", "32"),
        ("--learning_rate", "1e-4", "--batch_size", "32"),
        ("learning_rate=1e-4", "batch_size=32"),
    ],
)
def test_overrides_are_taken_as_the_description_types_them(run_lorafit, typed):
    outcome = run_lorafit(
        *("config", "show", "--preset", "mistral-nli/ablation1-best", "--hardware", "a100-80gb"),
        *("--json", *typed),
    )
    document = json.loads(outcome.out)
    assert document["settings"]["learning_rate"]["value"] == 1e-4
    batch = document["batch"]
    assert batch["per_device_train_batch_size"] == batch["effective_batch_size"] == 32
    assert batch["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize("name", ["mistral-nli/../low", "/low", "mistral-nli/", "a/b/c", "Low/x"])
def test_b4_a_name_that_is_no_family_and_name_is_a_usage_error(run_lorafit, name):
    outcome = run_lorafit("presets", "show", name)
    assert outcome.code == 2
    assert "preset" in outcome.err


def test_an_unknown_preset_of_a_family_names_the_nearest(run_lorafit):
    outcome = run_lorafit("presets", "show", "mistral-nli/ablation3")
    assert outcome.code == 2
    assert "did you mean mistral-nli/ablation" in outcome.err


@pytest.mark.parametrize("name", ["mistral-nli/ablation0", "groups/training/default"])
def test_a_file_of_a_family_validates_under_its_name(run_lorafit, name):
    from lorafit.config.presets import presets_dir

    outcome = run_lorafit("config", "validate", presets_dir() / f"{name}.yaml")
    assert (outcome.code == 0) == name.startswith("mistral")


# -- Which GPUs ----------------------------------------------------------------------------


def test_one_gpu_becomes_the_visible_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,GPU-bb")
    choices = with_gpus(RunChoices(), "1")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bb"
    assert choices.flags["device"] == "cuda"


def test_no_list_of_gpus_changes_nothing(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    choices = RunChoices()
    assert with_gpus(choices, None) is choices
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_several_gpus_are_one_process_each_and_need_to_be_there(run_lorafit, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LORAFIT_DEVICE", "auto")
    outcome = run_lorafit(
        "train", "--preset", "mistral-nli/distributed", "--gpus", "0,1", "--data", "x.jsonl"
    )
    assert outcome.code == 4
    assert "cuda cannot be used: no NVIDIA GPU or driver was found" in outcome.err


def test_a_launchers_variables_must_be_whole(run_lorafit, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    outcome = run_lorafit("train", "--config", "default.json")
    assert outcome.code == 2
    assert "RANK: is None, where WORLD_SIZE says that there are several" in outcome.err


@pytest.mark.parametrize("gpus", ["", "x", "0,,1", "0,0", "-1", "0;1", "²"])
def test_what_is_no_list_of_gpus_is_a_usage_error(gpus):
    with pytest.raises(UsageError):
        with_gpus(RunChoices(), gpus)


@pytest.mark.parametrize("choices", [RunChoices(flags={"device": "cpu"}),
                                     RunChoices(hardware="a10g")])  # fmt: skip
def test_gpus_contradict_another_device(choices):
    with pytest.raises(UsageError, match="GPUs"):
        with_gpus(choices, "0")


def test_an_index_beyond_the_visible_gpus_is_a_usage_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UsageError, match="shows 1 GPU, and 1 is not among them"):
        with_gpus(RunChoices(), "1")


# -- Evaluation ----------------------------------------------------------------------------


def test_evaluate_reports_what_the_system_measures(run_lorafit, tiny_model, nli_rows, tmp_path):
    from lorafit.config.presets import load_preset

    settings = load_preset("mistral-nli/ablation1-best").settings
    answers = tmp_path / "answers.jsonl"
    outcome = run_lorafit(
        *("evaluate", "--model", tiny_model("mistral"), "--data", nli_rows, "--device", "cpu"),
        *("--prompt-template", settings["prompt_template"]),
        *("--completion-template", settings["completion_template"], "--label-field", "label"),
        *("--max-length", "128", "--max-new-tokens", "4", "--compute-dtype", "float32"),
        *("--answers", answers, "--json"),
    )
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    for share in ("accuracy", "macro_f1", "answered", "ends_in_label", "bare_labels"):
        assert 0 <= document[share] <= 1
    assert sum(sum(row.values()) for row in document["confusion"].values()) == document["rows"] == 5
    rows = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert all({"predicted", "ends_in_label", "is_bare"} <= row.keys() for row in rows)
    share = sum(row["ends_in_label"] for row in rows) / len(rows)
    assert share == document["ends_in_label"]
