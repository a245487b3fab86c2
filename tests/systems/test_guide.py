"""The training guide for Phi-2: its flags, defaults and ranges, typed as they stand there."""

import json
import shlex

import pytest

from lorafit.config.presets import load_preset
from lorafit.config.schema import Settings, recommended_range

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"

DEFAULTS = {
    MICRO: 8, ACCUMULATION: 8, "max_length": 1024, "learning_rate": 2e-4, "num_train_epochs": 20,
    "warmup_ratio": 0.05, "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05,
    "gradient_checkpointing": True, "torch_compile": True,
}  # fmt: skip
RANGES = {
    MICRO: (4, 16), ACCUMULATION: (4, 32), "learning_rate": (5e-5, 2e-4),
    "warmup_ratio": (0.03, 0.1), "lora_r": (8, 32), "lora_dropout": (0.03, 0.1),
}  # fmt: skip
ROWS = {
    ("high", "a10g"): "--batch_size 8 --gradient_accumulation_steps 4 --max_length 2048",
    ("balanced", "a10g"): "--batch_size 4 --gradient_accumulation_steps 8 --max_length 1024",
    ("low", "a10g"): "--batch_size 2 --gradient_accumulation_steps 16 --max_length 768",
    ("high", "m3-18gb"): "--batch_size 3 --gradient_accumulation_steps 8 --max_length 1024",
    ("balanced", "m3-18gb"): "--batch_size 2 --gradient_accumulation_steps 16 --max_length 1024",
    ("low", "m3-18gb"): "--batch_size 2 --gradient_accumulation_steps 16 --max_length 768 "
    "--gradient_checkpointing",
    ("safe", "m3-18gb"): "--batch_size 1 --gradient_accumulation_steps 32 --max_length 768 "
    "--gradient_checkpointing",
}
RECOMMENDED = {
    "quick-test": "--batch_size 2 --epochs 3 --gradient_accumulation_steps 8 --learning_rate 2e-4",
    "production": "--batch_size 4 --epochs 20 --gradient_accumulation_steps 16 "
    "--learning_rate 1e-4",
    "memory-limited": "--batch_size 2 --gradient_accumulation_steps 32 --max_length 768 "
    "--gradient_checkpointing",
}


def test_defaults_are_those_of_the_guide():
    assert {name: Settings.model_fields[name].default for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("name", RANGES)
def test_recommended_ranges_are_those_of_the_guide(name):
    advised = recommended_range(name)
    assert advised is not None
    assert (advised.low, advised.high) == RANGES[name]
    assert advised.below
    assert advised.above


@pytest.mark.parametrize(("alpha", "warned"), [(8, True), (16, False), (32, False), (40, True)])
def test_alpha_is_two_to_four_times_the_rank_or_worth_a_word(run_lorafit, alpha, warned):
    outcome = run_lorafit("config", "show", "--hardware", "a10g", "--lora_alpha", alpha)
    assert ("2 to 4 times is usual" in outcome.err) == warned


def shown(run_lorafit, hardware, *flags):
    outcome = run_lorafit("config", "show", "--hardware", hardware, "--json", *flags)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    return {k: v["value"] for k, v in document["settings"].items()}, document["batch"]


@pytest.mark.parametrize(("preset", "hardware"), ROWS)
def test_the_flags_of_a_memory_row_are_what_the_preset_gives(run_lorafit, preset, hardware):
    typed, typed_batch = shown(run_lorafit, hardware, *shlex.split(ROWS[preset, hardware]))
    given, given_batch = shown(run_lorafit, hardware, "--preset", preset)
    assert typed["max_length"] == given["max_length"]
    assert typed["gradient_checkpointing"] is given["gradient_checkpointing"] is True
    for name in (MICRO, ACCUMULATION, "effective_batch_size"):
        assert typed_batch[name] == given_batch[name]


@pytest.mark.parametrize("preset", RECOMMENDED)
def test_a_recommended_configuration_is_a_preset(run_lorafit, preset):
    typed, batch = shown(run_lorafit, "a10g", *shlex.split(RECOMMENDED[preset]))
    settings = load_preset(preset).settings
    names = set(settings) - {"effective_batch_size"}
    assert {name: typed[name] for name in names} == {name: settings[name] for name in names}
    assert (
        batch["effective_batch_size"]
        == shown(run_lorafit, "a10g", "--preset", preset)[1]["effective_batch_size"]
    )


def test_accumulation_does_not_change_what_a_run_takes(run_lorafit):
    def peak(*flags):
        outcome = run_lorafit("estimate-memory", "--hardware", "a10g", "--fast", "--json", *flags)
        return json.loads(outcome.out)["peak"]["process_bytes"]

    assert peak("--gradient_accumulation_steps", "4") == peak("--gradient_accumulation_steps", "32")
    assert peak("--batch_size", "4") < peak("--batch_size", "16")
    assert peak("--max_length", "768") < peak("--max_length", "2048")
    assert peak("--lora_r", "8") < peak("--lora_r", "32")
    assert peak("--lora_alpha", "16") == peak("--lora_alpha", "32")
    assert peak("--gradient_checkpointing") < peak("--no-gradient-checkpointing")
