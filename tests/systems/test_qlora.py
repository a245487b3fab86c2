"""QLoRA's JSON files and presets: the layout loads as it stands, and 64 rows stay 64."""

import json

import pytest
from tiny import ROOT

from lorafit.config.batch import resolve_batch
from lorafit.config.layers import Layer, resolve_layers
from lorafit.config.presets import load_preset
from lorafit.config.situations import FAMILY, SITUATIONS, find_situation
from lorafit.errors import ConfigError, UsageError

from .conftest import DATA

MICRO = "per_device_train_batch_size"


def resolved(name):
    preset = load_preset(name)
    return resolve_layers([preset.layer, Layer("row", "hardware", preset.rows["default"].values)])


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 32, 64])
def test_64_rows_a_step_are_kept_on_any_number_of_devices_that_divides_them(name, devices):
    batch = resolve_batch(resolved(name), devices)
    assert batch.effective_batch_size == 64
    assert batch.per_device_train_batch_size * batch.gradient_accumulation_steps * devices == 64


@pytest.mark.parametrize(
    ("name", "accumulation"), [("qlora/default", 4), ("qlora/memory-efficient", 8)]
)
def test_on_four_devices_accumulation_is_that_of_the_description(name, accumulation):
    assert resolve_batch(resolved(name), 4).gradient_accumulation_steps == accumulation


def test_a_number_of_devices_that_cannot_share_64_rows_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        resolve_batch(resolved("qlora/default"), 6)
    assert "the nearest numbers of devices that keep 64: 4 or 8 devices" in caught.value.hint


def test_the_json_layout_loads_as_it_stands(run_lorafit):
    outcome = run_lorafit(
        *("config", "show", "--config", DATA / "qlora_default.json", "--hardware", "a100-80gb"),
        "--json",
    )
    document = json.loads(outcome.out)
    values = {name: entry["value"] for name, entry in document["settings"].items()}
    expected = {**load_preset("qlora/default").settings, "max_length": 512}
    assert {name: values[name] for name in expected} == expected
    assert values["data"] == "data/train.jsonl"
    where = document["settings"]["quantization"]["origin"]
    assert where.endswith("qlora_default.json:4 (model_config.load_in_4bit)")
    # Only the scale is remarked on: everything else in the file has its effect.
    assert all("lora_alpha" in warning for warning in document["warnings"])


@pytest.mark.parametrize("name", FAMILY)
def test_the_example_files_say_what_the_presets_say(run_lorafit, name):
    path = ROOT / "examples" / "qlora" / f"{name.partition('/')[2].replace('-', '_')}.json"
    outcome = run_lorafit("config", "show", "--config", path, "--hardware", "a100-80gb", "--json")
    document = json.loads(outcome.out)
    preset = load_preset(name)
    expected = {**preset.settings, **preset.hardware["default"]}
    values = {key: entry["value"] for key, entry in document["settings"].items()}
    assert {key: values[key] for key in expected} == expected
    assert document["batch"]["gradient_accumulation_steps"] == 64 // values[MICRO]


@pytest.mark.parametrize(
    ("entry", "setting", "value"),
    [
        ('"fp16": true', "compute_dtype", "float16"),
        ('"torch_dtype": "bfloat16"', "compute_dtype", "bfloat16"),
        ('"load_in_8bit": true, "load_in_4bit": false', "quantization", "int8"),
        ('"lora_config": {"r": 4}', "lora_r", 4),
        ('"target_modules": "all-linear"', "target_modules", None),
        ('"report_to": "none"', "report_to", ["none"]),
        ('"training_hyperparameters": {"lr": 1e-4}', "learning_rate", 1e-4),
    ],
)
def test_names_of_hugging_face_are_settings_too(run_lorafit, tmp_path, entry, setting, value):
    path = tmp_path / "mine.json"
    path.write_text("{" + entry + "}")
    outcome = run_lorafit("config", "show", "--config", path, "--hardware", "a10g", "--json")
    assert json.loads(outcome.out)["settings"][setting]["value"] == value


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('"task_type": "SEQ_CLS"', "lorafit trains causal language models"),
        ('"bnb_4bit_quant_type": "fp4"', "lorafit's 4-bit format is nf4"),
        ('"bf16": true, "fp16": true', "it gives compute_dtype another value"),
        ('"trust_remote_code": true', "lorafit never runs code that comes with a model"),
        ('"my_config": {"bf16": true}', "there is no section 'my_config'"),
    ],
)
def test_what_would_be_another_run_is_refused_with_its_line(run_lorafit, tmp_path, entry, message):
    path = tmp_path / "mine.json"
    path.write_text("{\n" + entry + "}")
    outcome = run_lorafit("config", "show", "--config", path, "--hardware", "a10g")
    assert outcome.code == 3
    assert message in outcome.err
    assert "mine.json:2" in outcome.err


def test_what_has_no_effect_is_a_warning_with_its_line(run_lorafit, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{\n"push_to_hub": true,\n"seed": 1}')
    outcome = run_lorafit("config", "validate", path)
    assert outcome.code == 0
    assert "mine.json:2: push_to_hub: it has no effect: training uploads nothing" in outcome.err


# -- The selection guide -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "preset"),
    [
        ("standard training", "default"), ("First production run", "default"),
        ("model underfitting", "high-capacity"), ("OOM errors", "memory-efficient"),
        ("out of memory", "memory-efficient"), ("testing pipeline", "quick-test"),
        ("long sequences", "default"), ("short_sequences", "memory-efficient"),
    ],
)  # fmt: skip
def test_a_situation_has_the_preset_of_the_guide(words, preset):
    assert find_situation(words).preset == f"qlora/{preset}"


def test_a_situation_that_nobody_knows_lists_those_there_are():
    with pytest.raises(UsageError) as caught:
        find_situation("underfiting")
    assert caught.value.hint.startswith('did you mean "underfitting"?')
    assert all(situation.name in caught.value.hint for situation in SITUATIONS)


def recommend(run_lorafit, *arguments):
    return run_lorafit("presets", "recommend", "--fast", *arguments)


def test_a_recommendation_comes_with_the_estimate_for_the_device(run_lorafit):
    words = ("--situation", "out of memory", "--hardware", "a10g")
    document = json.loads(recommend(run_lorafit, *words, "--json").out)
    assert document["preset"] == "qlora/memory-efficient"
    assert document["fits"] is True
    peaks = {entry["preset"]: entry["process_bytes"] for entry in document["tried"]}
    assert peaks["qlora/memory-efficient"] < peaks["qlora/default"] < peaks["qlora/high-capacity"]
    shown = recommend(run_lorafit, *words)
    assert shown.out == "qlora/memory-efficient\n"
    assert "lorafit train --preset qlora/memory-efficient --data FILE" in shown.err


def test_where_nothing_fits_the_exit_code_is_4(run_lorafit):
    outcome = recommend(
        run_lorafit,
        *("--situation", "underfitting", "--hardware", "a10g"),
        *("--model", "meta-llama/Llama-3.1-70B"),
    )
    assert outcome.code == 4
    assert "does not fit" in outcome.err


def test_a_device_without_bfloat16_gets_the_flag_that_it_needs(run_lorafit):
    outcome = recommend(run_lorafit, "--situation", "standard training", "--hardware", "t4")
    assert outcome.code == 0
    assert "--compute-dtype auto" in outcome.err


@pytest.mark.parametrize("flag", ["--situation", "--hardware", "--model"])
def test_an_empty_value_is_refused(run_lorafit, flag):
    words = {"--situation": "standard training", flag: ""}
    arguments = [part for pair in words.items() for part in pair]
    assert recommend(run_lorafit, *arguments).code == 2
