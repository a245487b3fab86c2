"""`lorafit config convert`: a recorded file of each tool, and files that try to be run."""

import json

import pytest

from lorafit.config.convert.detect import detect_kind
from lorafit.config.convert.dialects import KIND_NAMES
from lorafit.config.convert.translate import convert_file
from lorafit.config.convert.write import render_config
from lorafit.config.files import config_file_layer
from lorafit.config.layers import resolve_layers
from lorafit.config.loading import load_document
from lorafit.errors import ConfigError

from .conftest import DATA

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"

# File: its kind, some settings as they must become, and keys that must be told as lost.
RECORDED = {
    "ablation2_best.py": (
        "python",
        {"model": "mistralai/Mistral-7B-v0.1", "max_length": 512, "lora_r": 32, "lora_alpha": 64,
         "learning_rate": 5e-5, "num_train_epochs": 5, "warmup_ratio": 0.03, "max_grad_norm": 0.3,
         "compute_dtype": "bfloat16", "gradient_checkpointing": True, MICRO: 4},
        {"output_dir", ACCUMULATION, "seed", "scratch"},
    ),
    "qlora_default.json": (
        "hf-json",
        {"quantization": "nf4", "double_quant": True, "compute_dtype": "bfloat16", "lora_r": 32,
         "max_length": 512, "learning_rate": 2e-4, "warmup_steps": 100, "num_train_epochs": 3,
         "data": "data/train.jsonl", "validation_data": "data/validation.jsonl", MICRO: 4,
         ACCUMULATION: 4, "optim": "adamw_torch", "lr_scheduler_type": "cosine"},
        set(),
    ),
    "training_arguments.json": (
        "hf-json",
        {MICRO: 2, ACCUMULATION: 8, "learning_rate": 1e-4, "warmup_ratio": 0.06, "seed": 7,
         "optim": "paged_adamw_8bit", "validation_split": 0.0, "lr_scheduler_type": "linear",
         "gradient_checkpointing": False, "save_total_limit": 2, "num_train_epochs": 3},
        {"adam_beta2", "save_strategy", "deepspeed", "group_by_length", "push_to_hub", "hub_token",
         "neftune_noise_alpha"},
    ),
    "adapter_config.json": (
        "hf-json",
        {"model": "microsoft/phi-2", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.1,
         "target_modules": ("q_proj", "v_proj"), "modules_to_save": ("lm_head",),
         "use_rslora": True},
        {"layers_to_transform"},
    ),
    "hydra.yaml": (
        "hydra",
        {"model": "google/gemma-3-1b-pt", MICRO: 4, "max_steps": 3738, "num_train_epochs": 1,
         ACCUMULATION: 2, "output_dir": "./checkpoints/ckpts/", "learning_rate": 3e-6,
         "max_grad_norm": 0.1, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05, "lora_r": 16},
        {"defaults", "data.path", "grpo.num_generations", "wandb.project"},
    ),
    "axolotl.yaml": (
        "axolotl",
        {"model": "mistralai/Mistral-7B-v0.1", "quantization": "nf4", "data": "data/train.jsonl",
         "validation_split": 0.1, "max_length": 2048, "lora_r": 32, "lora_alpha": 16, MICRO: 2,
         ACCUMULATION: 4, "num_train_epochs": 4, "optim": "adamw_8bit", "warmup_steps": 10,
         "attn_implementation": "flash_attention_2", "train_on_prompt": False},
        {"loss_watchdog_threshold", "evals_per_epoch", "saves_per_epoch"},
    ),
    "llama_factory.yaml": (
        "llama-factory",
        {"model": "meta-llama/Meta-Llama-3-8B-Instruct", "quantization": "nf4", "lora_r": 16,
         "lora_alpha": 32, "max_length": 1024, MICRO: 1, ACCUMULATION: 8, "learning_rate": 1e-4,
         "warmup_ratio": 0.1, "validation_split": 0.1, "compute_dtype": "bfloat16"},
        {"trust_remote_code", "dataset", "max_samples"},
    ),
    "trl.yaml": (
        "trl",
        {"model": "Qwen/Qwen2.5-0.5B", "data": "trl-lib/Capybara", "lora_r": 32, "lora_alpha": 16,
         "target_modules": ("q_proj", "v_proj"), "quantization": "nf4", "double_quant": False,
         "num_train_epochs": 1, "eval_steps": 100, "lora_dropout": 0.05, "warmup_ratio": 0.0},
        {"dataset_config", "eos_token", "push_to_hub"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_file_becomes_these_settings(name):
    kind, expected, lost = RECORDED[name]
    conversion = convert_file(DATA / name)
    assert conversion.kind.value == kind
    assert conversion.kind.reason
    assert {key: conversion.values.get(key) for key in expected} == expected
    assert lost == lost & {remark.key for remark in conversion.lost}
    assert all(remark.reason for remark in (*conversion.kept, *conversion.lost))


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_written_is_read_back_as_the_same_settings(name, tmp_path):
    conversion = convert_file(DATA / name)
    path = tmp_path / "converted.yaml"
    path.write_text(render_config(conversion), encoding="utf-8")
    layer, _ = config_file_layer(path)
    settings = resolve_layers([layer]).settings
    assert {name: getattr(settings, name) for name in conversion.values} == conversion.values


@pytest.mark.parametrize("name", RECORDED)
def test_every_key_of_the_file_is_accounted_for(name):
    if name.endswith(".py"):
        return
    document = load_document(DATA / name)
    conversion = convert_file(DATA / name)
    told = {setting.key for setting in conversion.settings}
    told |= {remark.key for remark in (*conversion.kept, *conversion.lost)}
    assert told - {""} == {key for key, _ in document.flat()}


def test_the_effective_batch_of_several_processes_is_kept():
    conversion = convert_file(DATA / "qlora_default.json", num_processes=4)
    assert conversion.values["effective_batch_size"] == 64
    assert ACCUMULATION not in conversion.values


def test_a_python_file_is_never_run(tmp_path):
    proof = tmp_path / "was-run"
    path = tmp_path / "evil.py"
    path.write_text(
        "import os\n"
        f"open({str(proof)!r}, 'w')\n"
        f"lr = float(os.system('touch {proof}') or 1e-4)\n"
        "batch_size = 2 if os.environ else 4\n"
        "epochs = 3\n"
        "epochs += 1\n"
        "seed = 5\n"
        f"class Training(open({str(proof)!r}, 'w') and object):\n"
        "    max_length: int = 256\n"
        "    lora_r = [print('x')]\n"
        "config = dict(warmup_ratio=0.1, weight_decay=open('x'))\n"
        "config['max_grad_norm'] = 0.5\n"
        "config.update(learning_rate=1)\n"
    )
    conversion = convert_file(path)
    assert not proof.exists()
    assert conversion.values == {
        "seed": 5, "max_length": 256, "warmup_ratio": 0.1, "max_grad_norm": 0.5,
    }  # fmt: skip
    told = {remark.key: remark.reason for remark in conversion.lost}
    assert "is not a literal, and code is never run" in told["lr"]
    assert "line 6 may change it" in told["epochs"]
    assert told["batch_size"].endswith("per_device_train_batch_size stays 8 unless you set it")
    assert {"lora_r", "weight_decay"} <= told.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = (", "this is not Python: '(' was never closed"),
        ("x = " + "[" * 500 + "]" * 500, "this is not Python"),
        ("x = 1\n", "nothing in it is a setting of lorafit; its keys: x"),
        ("seed = 1\0", "byte 8 is zero"),
    ],
)
def test_a_python_file_that_cannot_be_read_is_told(tmp_path, text, message):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        convert_file(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("training:\n  seed: ${oc.env:SEED}\n", "an interpolation in `training.seed`"),
        ("optimizer:\n  _target_: x\n", "`optimizer._target_`"),
        ("training:\n  micro_batch_size: 2\n", "its settings stand in sections"),
        ("stage: sft\nlora_target: all\n", "lora_target and stage are keys of llama-factory"),
        ("use_peft: true\ndataset_name: x\n", "dataset_name and use_peft are keys of trl"),
    ],
)
def test_the_reason_for_a_kind_names_the_keys(tmp_path, text, reason):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert detect_kind(load_document(path), path).reason.endswith(reason)


def test_expressions_of_any_length_are_told_and_not_followed(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("seed = 1\nepochs = " + "+".join("1" * 900) + "\nlr = f'{x}'\n")
    conversion = convert_file(path)
    assert conversion.values == {"seed": 1}
    assert {remark.key for remark in conversion.lost} == {"epochs", "lr"}


def test_two_values_for_one_setting_are_told_and_the_first_is_taken(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("training:\n  lr: 1e-4\noptimizer:\n  learning_rate: 2e-4\n  seed: '3'\n")
    conversion = convert_file(path)
    assert conversion.values == {"learning_rate": 1e-4, "seed": 3}
    (lost,) = conversion.lost
    assert "it says 0.0002, and training.lr" in lost.reason


def test_a_preset_and_a_file_of_no_tool_are_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("settings: {}\nhardware: {}\n")
    with pytest.raises(ConfigError, match="a preset of lorafit already"):
        convert_file(path)
    path.write_text("colour: red\n")
    with pytest.raises(ConfigError) as caught:
        convert_file(path)
    assert "--from: python, hf-json, hydra, axolotl, llama-factory, trl" in str(caught.value.hint)


# -- The command ---------------------------------------------------------------------------


def test_the_command_writes_a_file_that_validates(run_lorafit, tmp_path):
    output = tmp_path / "mine.yaml"
    outcome = run_lorafit("config", "convert", DATA / "axolotl.yaml", "--output", output)
    assert (outcome.code, outcome.out) == (0, "")
    assert "is an Axolotl configuration: adapter, base_model" in outcome.err
    assert "loss_watchdog_threshold" in outcome.err
    assert run_lorafit("config", "validate", output).code == 0
    again = run_lorafit("config", "convert", DATA / "axolotl.yaml", "--output", output)
    assert again.code == 7
    assert "it is there already" in again.err


def test_the_json_of_the_command_has_the_whole_account(run_lorafit):
    outcome = run_lorafit("config", "convert", DATA / "llama_factory.yaml", "--json")
    document = json.loads(outcome.out)
    assert document["schema_version"] == 1
    assert document["kind"] == "llama-factory"
    assert document["settings"]["quantization"] == "nf4"
    assert document["origins"]["lora_alpha"] == {
        "key": None, "where": "not in the file: the default of LLaMA-Factory",
    }  # fmt: skip
    (code,) = [r for r in document["not_carried_over"] if r["key"] == "trust_remote_code"]
    # Recipes set it for models that need no code as well.
    assert code["changes_run"] is False


@pytest.mark.parametrize(
    "arguments",
    [["--from", "pickle", "x.yaml"], ["--output", "", "x.yaml"], [""]],
)
def test_wrong_arguments_are_usage_errors(run_lorafit, arguments):
    assert run_lorafit("config", "convert", *arguments).code == 2


def test_every_kind_has_a_recorded_file():
    assert {kind for kind, _, _ in RECORDED.values()} == set(KIND_NAMES)


@pytest.mark.parametrize(("lines", "data"), [("data_path: mine.jsonl\n", ""), ("", " --data FILE")])
def test_the_next_step_asks_for_rows_only_where_the_file_names_none(
    run_lorafit, tmp_path, monkeypatch, lines, data
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.yaml").write_text("bf16: true\nlearning_rate: 1.0e-4\n" + lines)
    outcome = run_lorafit("config", "convert", "old.yaml", "--output", "new.yaml")
    assert outcome.code == 0, outcome.err
    assert f"next: lorafit train --config new.yaml{data} --dry-run" in outcome.err
