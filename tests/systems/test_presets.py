"""Every preset of every system: listed, shown, estimated, planned, and trained for two steps."""

import json

import pytest

from lorafit.config.presets import list_presets, load_preset, preset_names

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
MISTRAL, GEMMA = "mistralai/Mistral-7B-v0.1", "google/gemma-3"

# What the descriptions of the systems give, by preset; `effective` stands for the batch of a step.
GIVEN = {
    "mistral-nli/ablation0": {"effective": 16, "num_train_epochs": 1},
    "mistral-nli/ablation0-best": {"effective": 16, "num_train_epochs": 2},
    "mistral-nli/ablation1": {
        "effective": 32, "warmup_ratio": 0.05, "gradient_checkpointing": False,
    },
    "mistral-nli/ablation1-best": {
        "effective": 32, "warmup_ratio": 0.03, "gradient_checkpointing": True,
    },
    "mistral-nli/ablation2": {"effective": 64, "lora_r": 32, "lora_alpha": 64},
    "mistral-nli/ablation2-best": {
        "effective": 64, "lora_r": 32, "lora_alpha": 64, "learning_rate": 5e-5,
        "num_train_epochs": 5,
    },
    "mistral-nli/distributed": {
        "effective": 32, "warmup_ratio": 0.03, "gradient_checkpointing": True,
    },
    "mistral-nli/quick-test": {},
    "qlora/default": {"lora_r": 32, "num_train_epochs": 3, MICRO: 4, "warmup_steps": 100},
    "qlora/high-capacity": {"lora_r": 64, "lora_alpha": 64, "num_train_epochs": 3, MICRO: 4},
    "qlora/memory-efficient": {"lora_r": 32, "num_train_epochs": 3, MICRO: 2, "max_length": 256},
    "qlora/quick-test": {"lora_r": 16, "num_train_epochs": 1, MICRO: 4, "warmup_steps": 50},
    "gemma3/quick-test": {MICRO: 2, "max_steps": 10, "save_steps": 10, "eval_steps": 10},
    "gemma3/memory-constrained": {"model": f"{GEMMA}-270m", MICRO: 1, "max_steps": 3738},
    "gemma3/high-performance": {
        "model": f"{GEMMA}-4b-pt", MICRO: 8, "max_steps": 10_000, "eval_steps": 1000,
    },
    "gemma3/production": {
        "model": f"{GEMMA}-1b-pt", MICRO: 4, "max_steps": 10_000, "save_steps": 100,
    },
    "gemma3/aggressive": {
        MICRO: 8, "max_steps": 1000, "save_steps": 50, "eval_steps": 100, "logging_steps": 5,
    },
}  # fmt: skip
SHARED = {
    "mistral-nli": {"model": MISTRAL, "lr_scheduler_type": "cosine"},
    "qlora": {
        "effective": 64, "learning_rate": 2e-4, "quantization": "nf4", "double_quant": True,
        "optim": "adamw_torch", "lr_scheduler_type": "cosine", "compute_dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
    "gemma3": {ACCUMULATION: 1, "max_grad_norm": 0.1, "seed": 42},
}  # fmt: skip
NAMES = tuple(GIVEN)


def test_these_are_the_presets_of_the_systems():
    assert tuple(name for name in preset_names() if "/" in name) == tuple(sorted(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_every_value_that_its_system_gives(name):
    preset = load_preset(name)
    values = {**preset.settings, **preset.hardware["default"]}
    values["effective"] = values.get("effective_batch_size")
    given = {**SHARED[name.partition("/")[0]], **GIVEN[name]}
    given.setdefault("max_length", 512 if name.startswith("qlora") else values["max_length"])
    assert {key: values[key] for key in given} == given


def test_the_best_configuration_and_the_distributed_one_agree():
    assert load_preset("mistral-nli/ablation1-best").settings == (
        load_preset("mistral-nli/distributed").settings
    )


def test_the_third_track_is_the_larger_and_steadier_one():
    first, third = (load_preset(f"mistral-nli/ablation{n}").settings for n in (0, 2))
    best = load_preset("mistral-nli/ablation2-best").settings
    assert third["lora_r"] > first["lora_r"]
    assert third["warmup_ratio"] > first["warmup_ratio"]
    assert best["learning_rate"] < third["learning_rate"] < first["learning_rate"]
    assert third["max_grad_norm"] < 1
    assert best["warmup_ratio"] != third["warmup_ratio"]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_in_its_comment_whether_it_is_given_or_chosen(name):
    lines = load_preset(name).path.read_text("utf-8").splitlines()
    settings = lines[lines.index("settings:") + 1 :]
    comment: list[str] = []
    for line in settings:
        text = line.strip()
        if text.startswith("# "):
            comment.append(text[2:])
        elif text and not text.endswith(":"):
            said = " ".join(comment)
            assert "Given: " in said or "Chosen: " in said, f"{name}: {text}"
        if not text.startswith("#"):
            comment = []


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_shown_and_resolves_without_a_warning(run_lorafit, name):
    shown = json.loads(run_lorafit("presets", "show", name, "--json").out)
    assert shown["name"] == name
    outcome = run_lorafit("config", "show", "--preset", name, "--hardware", "a100-80gb", "--json")
    document = json.loads(outcome.out)
    assert document["warnings"] == []
    asked = GIVEN[name].get("effective", SHARED[name.partition("/")[0]].get("effective"))
    if asked is not None:
        assert document["batch"]["effective_batch_size"] == asked


def test_the_list_has_all_of_them(run_lorafit):
    listed = json.loads(run_lorafit("presets", "list", "--json").out)["presets"]
    assert {entry["name"] for entry in listed} == set(preset_names())
    assert len(listed) == len(list_presets())


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_of_a_preset_is_estimated_at_once(run_lorafit, name):
    outcome = run_lorafit(
        *("estimate-memory", "--preset", name, "--hardware", "a100-80gb", "--fast", "--json")
    )
    document = json.loads(outcome.out)
    assert document["verdict"] == "fits"
    assert document["peak"]["process_bytes"] > document["breakdown"]["weights_bytes"] > 0


def train_two_steps(run_lorafit, arguments):
    dry = run_lorafit("train", *arguments, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    plan = json.loads(dry.out)
    outcome = run_lorafit("train", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["steps"], plan["schedule"]["total_steps"]) == (2, 2)
    assert 0 < result["final_loss"] < 20
    return plan


# One of each family by default; all of them in the slow run.
QUICK = ("mistral-nli/ablation1-best", "qlora/default", "gemma3/quick-test")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_a_preset_trains_two_steps_as_its_dry_run_says(
    run_lorafit, system_arguments, tmp_path, name
):
    arguments = [*system_arguments(name), "--output-dir", tmp_path / "run"]
    plan = train_two_steps(run_lorafit, arguments)
    given = {**SHARED[name.partition("/")[0]], **GIVEN[name]}
    assert plan["batch"]["effective_batch_size"] == given.get("effective", given.get(MICRO, 8))
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_with_its_own_adapter_batch_and_weights(
    run_lorafit, system_arguments, tmp_path, name
):
    arguments = [*system_arguments(name, alike=False), "--output-dir", tmp_path / "run"]
    plan = train_two_steps(run_lorafit, arguments)
    settings = load_preset(name).settings
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (settings["lora_r"], settings["lora_alpha"])
    assert plan["settings"]["quantization"] == settings.get("quantization", "none")
