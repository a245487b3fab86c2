"""The training reference: config groups, names, ranges and defaults, as they are typed there."""

import json

import pytest

from lorafit.config.groups import GROUPS, list_options, option_names, split_groups
from lorafit.config.presets import load_preset
from lorafit.config.schema import Settings

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


@pytest.fixture
def settings_of(run_lorafit):
    """Return a function that gives the settings and origins of some arguments."""

    def resolve(*arguments):
        outcome = run_lorafit("config", "show", "--hardware", "a10g", "--json", *arguments)
        assert outcome.code == 0, outcome.err
        return {k: v["value"] for k, v in json.loads(outcome.out)["settings"].items()}

    return resolve


DEFAULTS = {
    MICRO: 4, "max_steps": 3738, "save_steps": 100, "eval_steps": 500, "logging_steps": 10,
    "seed": 42, ACCUMULATION: 1,
}  # fmt: skip
AGGRESSIVE = {
    MICRO: 8, "max_steps": 1000, "save_steps": 50, "eval_steps": 100, "logging_steps": 5,
    "seed": 42, ACCUMULATION: 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["training=default", "optimizer=default"], {**DEFAULTS, "max_grad_norm": 0.1}),
        (["training=aggressive"], AGGRESSIVE),
        (["training=aggressive", "training.micro_batch_size=2"], {**AGGRESSIVE, MICRO: 2}),
        # A single setting wins over a group in whatever order they stand.
        (["training.micro_batch_size=2", "training=aggressive"], {**AGGRESSIVE, MICRO: 2}),
        (["+experiment=quick_test"], {MICRO: 2, "max_steps": 10, "save_steps": 10,
                                      "eval_steps": 10}),
        (["++training.num_batches=50", "training=default"], {**DEFAULTS, "max_steps": 50}),
        (["training=default", "experiment=quick-test"], {**DEFAULTS, MICRO: 2, "max_steps": 10,
                                                         "save_steps": 10, "eval_steps": 10}),
        (["model=gemma3_270m", "model.lora_rank=8"], {"model": "google/gemma-3-270m",
                                                      "lora_r": 8}),
        (["model=gemma3_1b"], {"model": "google/gemma-3-1b-pt"}),
        (["model=gemma3_270m", "model.lora_rank=8", "training.micro_batch_size=1",
          "--method", "grpo", "grpo.num_generations=2", "optimizer.learning_rate=1e-5"],
         {"model": "google/gemma-3-270m", "lora_r": 8, MICRO: 1, "num_generations": 2,
          "learning_rate": 1e-5}),
        (["model=gemma3_4b", "optimizer.learning_rate=3e-6"], {"model": "google/gemma-3-4b-pt",
                                                               "learning_rate": 3e-6}),
        (["model=./gemma3_1b"], {"model": "./gemma3_1b"}),
        (["checkpoint_dir=./checkpoints/ckpts/", "seed=43", "device=cpu"],
         {"output_dir": "./checkpoints/ckpts/", "seed": 43, "device": "cpu"}),
        (["training.save_interval_steps=200", "training.eval_interval_steps=1000",
          "training.log_interval_steps=5", "training.num_epochs=2"],
         {"save_steps": 200, "eval_steps": 1000, "logging_steps": 5, "num_train_epochs": 2}),
        (["training.micro_batch_size=2", "training.gradient_accumulation_steps=4"],
         {MICRO: 2, ACCUMULATION: 4}),
        (["--preset", "gemma3/production", "training=aggressive"], AGGRESSIVE),
    ],
)  # fmt: skip
def test_what_the_reference_types_means_what_it_says(settings_of, typed, expected):
    settings = settings_of(*typed)
    assert {name: settings[name] for name in expected} == expected


def test_defaults_of_the_reference_are_lorafits_where_no_group_is_chosen():
    names = ("save_steps", "eval_steps", "logging_steps", "seed")
    assert {n: Settings.model_fields[n].default for n in names} == {n: DEFAULTS[n] for n in names}


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("micro_batch_size", 1, 16), ("num_batches", 10, 100_000), ("num_epochs", 1, 10),
        ("save_interval_steps", 1, 1000), ("eval_interval_steps", 100, 5000),
        ("log_interval_steps", 1, 100), ("max_grad_norm", 0.01, 1.0),
    ],
)  # fmt: skip
def test_both_ends_of_every_range_are_accepted(settings_of, name, low, high):
    for value in (low, high):
        assert value in settings_of(f"{name}={value}").values()


@pytest.mark.parametrize(
    ("name", "above"),
    [("num_batches", 100_001), ("save_interval_steps", 1001), ("eval_interval_steps", 5001),
     ("log_interval_steps", 101), ("micro_batch_size", 17)],
)  # fmt: skip
def test_beyond_a_range_there_is_a_warning_that_says_why(run_lorafit, name, above):
    outcome = run_lorafit("config", "show", "--hardware", "a10g", f"{name}={above}")
    assert outcome.code == 0
    assert f"{above} is outside the recommended" in outcome.err


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
@pytest.mark.parametrize("name", ["micro_batch_size", "num_batches", "save_interval_steps"])
def test_values_that_no_range_has_are_usage_errors(run_lorafit, name, value):
    outcome = run_lorafit("config", "show", "--hardware", "a10g", f"training.{name}={value}")
    assert outcome.code == 2
    assert name in outcome.err


def test_num_batches_wins_over_num_epochs_and_says_so(run_lorafit):
    outcome = run_lorafit(
        "config", "show", "--hardware", "a10g", "training.num_batches=50", "training.num_epochs=2"
    )
    assert "it has no effect: max_steps sets the length of the run" in outcome.err


def test_the_files_of_the_reference_load_as_they_stand(settings_of, tmp_path):
    path = tmp_path / "default.yaml"
    path.write_text(
        "micro_batch_size: 4\nnum_batches: 3738\nnum_epochs: 1\n"
        "checkpoint_dir: ./checkpoints/ckpts/\nsave_interval_steps: 100\n"
        "eval_interval_steps: 500\nlog_interval_steps: 10\nseed: 42\ndevice: cpu\n"
    )
    settings = settings_of("--config", path)
    expected = {**DEFAULTS, "output_dir": "./checkpoints/ckpts/", "num_train_epochs": 1}
    del expected[ACCUMULATION]
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("training=agressive", "the config group training has no option 'agressive'"),
        ("+experiment=nothing", "the config group experiment has no option 'nothing'"),
        ("training=../../low", "the config group training has no option '../../low'"),
    ],
)
def test_an_option_that_is_not_there_is_a_usage_error(run_lorafit, typed, message):
    outcome = run_lorafit("config", "show", "--hardware", "a10g", typed)
    assert outcome.code == 2
    assert message in outcome.err
    assert "options: " in outcome.err


def test_a_group_chosen_twice_is_a_usage_error(run_lorafit):
    outcome = run_lorafit(
        "config", "show", "--hardware", "a10g", "training=default", "training=aggressive"
    )
    assert outcome.code == 2
    assert "the group is given twice" in outcome.err


def test_the_origin_of_a_groups_value_is_its_file(run_lorafit):
    outcome = run_lorafit("config", "show", "--hardware", "a10g", "--json", "training=aggressive")
    document = json.loads(outcome.out)
    origin = document["settings"]["save_steps"]["origin"]
    assert origin.startswith("training=aggressive (presets/groups/training/aggressive.yaml:")
    assert document["warnings"] == []


def test_every_option_is_listed_with_its_settings(run_lorafit):
    listed = json.loads(run_lorafit("config", "groups", "--json").out)["groups"]
    assert len(listed) == len(list_options()) == sum(len(option_names(g)) for g in GROUPS)
    assert all(entry["description"] and entry["settings"] for entry in listed)
    assert "training=aggressive" in run_lorafit("config", "groups").out


def test_a_folder_called_like_no_option_stays_a_model():
    layers, rest = split_groups(["model=org/name", "seed=1"])
    assert (layers, rest) == ([], ["model=org/name", "seed=1"])


@pytest.mark.parametrize(
    ("experiment", "preset"),
    [("quick_test", "quick-test"), ("memory_constrained", "memory-constrained"),
     ("high_performance", "high-performance"), ("production", "production")],
)  # fmt: skip
def test_a_pattern_is_the_same_as_experiment_and_as_preset(experiment, preset):
    (option,) = [o for o in list_options() if (o.group, o.name) == ("experiment", experiment)]
    settings = load_preset(f"gemma3/{preset}").settings
    assert {name: settings[name] for name in option.settings} == option.settings


def test_a_path_of_an_override_may_begin_at_home(settings_of, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = settings_of("checkpoint_dir=~/my_models/checkpoints/")
    assert settings["output_dir"] == "/home/somebody/my_models/checkpoints"


def test_the_disk_formula_of_the_reference_is_in_the_plan(run_lorafit, system_arguments, tmp_path):
    arguments = system_arguments("gemma3/quick-test")
    start = arguments.index("--max-steps")
    del arguments[start : start + 2]
    start = arguments.index("--save-steps")
    del arguments[start : start + 2]
    outcome = run_lorafit(
        *("train", *arguments, "--dry-run", "--json", "--output-dir", tmp_path / "run"),
        *("training.num_batches=40", "training.save_interval_steps=10"),
    )
    assert outcome.code == 0, outcome.err
    disk = json.loads(outcome.out)["disk"]
    assert disk["num_written"] == 40 / 10
    assert disk["unlimited_bytes"] == disk["checkpoint_bytes"] * 4 + disk["adapter_bytes"]
