"""`lorafit train`: flags, plan, streams, precedence."""

import json

import pytest

from lorafit.config.aliases import ALIASES
from lorafit.config.schema import Settings


@pytest.fixture
def plan(run_lorafit, train_arguments, tmp_path):
    """Return a function that gives the JSON plan of a dry run."""

    def plan(*more, **changes):
        outcome = run_lorafit(
            *train_arguments(tmp_path / "run", "--dry-run", "--json", *more, **changes)
        )
        assert outcome.code == 0, outcome.err
        assert not (tmp_path / "run").exists()
        return json.loads(outcome.out)

    return plan


def test_every_setting_has_a_flag(run_lorafit):
    shown = run_lorafit("train", "--help").out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown, name


@pytest.mark.parametrize("spelling", ["--learning-rate", "--learning_rate"])
def test_flags_take_dashes_and_underscores(plan, spelling):
    assert plan(spelling, "0.003", learning_rate=None)["settings"]["learning_rate"] == 0.003


@pytest.mark.parametrize("alias", [name for name in ALIASES if "." not in name])
def test_every_alias_is_a_flag_too(run_lorafit, alias):
    # A value that no setting takes shows which setting the flag was understood as.
    outcome = run_lorafit("train", "--data", "x", f"--{alias.replace('_', '-')}", "")
    assert outcome.code == 2
    assert f"--{ALIASES[alias].replace('_', '-')}" in outcome.err


def test_a_dry_run_trains_nothing_and_makes_no_folder(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--dry-run"))
    assert outcome.code == 0
    assert outcome.out == ""
    assert "dry run: nothing was trained\nnext: the same command without --dry-run\n" in outcome.err
    assert not (tmp_path / "run").exists()


def test_the_plan_shows_every_number_and_every_reason(run_lorafit, train_arguments, tmp_path):
    shown = run_lorafit(*train_arguments(tmp_path / "run", "--dry-run")).err
    for fact in (
        "asked for with --device cpu",
        "7,168 trainable parameters (18.95%)",
        "q_proj 1,024, k_proj 1,024",
        "all Linear modules of a phi layer",
        "2 micro-batch x 3 accumulation x 1 device = 6 effective batch",
        "6 steps = 2 epochs of 3",
        "peak learning rate 0.01 after 1 warm-up steps (16.7%), then cosine",
        "training on 18 rows",
        "0 dropped with nothing to learn, 0 cut to 64 tokens",
        "84.0 KiB a checkpoint x 3 on disk at once",
        "weights are stored in float32",
    ):
        assert fact in shown, fact


def test_the_json_plan_is_one_document_with_the_same_facts(plan):
    document = plan()
    assert document["schema_version"] == 1
    assert document["status"] == "planned"
    assert document["batch"]["effective_batch_size"] == 6
    assert document["schedule"]["total_steps"] == 6
    assert document["model"]["num_trainable_parameters"] == 7168
    assert document["settings"].keys() == Settings.model_fields.keys()
    assert all(document["reasons"].values())


def test_the_json_of_a_run_is_one_document(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--json", max_steps=2))
    document = json.loads(outcome.out)
    assert document["status"] == "completed"
    assert document["steps"] == 2
    assert document["adapter"] == str(tmp_path / "run" / "adapter")
    assert document["final_loss"] > 0


def test_hardware_plans_for_another_machine(run_lorafit, tiny_model, tiny_data, tmp_path):
    arguments = [
        *("train", "--preset", "balanced", "--hardware", "a10g", "--model", tiny_model()),
        *("--data", tiny_data, "--max-length", "256", "--output-dir", tmp_path / "run"),
    ]
    outcome = run_lorafit(*arguments, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "balanced has a row for this device, a10g" in outcome.err
    assert "A10G" in outcome.err
    refused = run_lorafit(*arguments)
    assert refused.code == 2
    assert "--hardware a10g plans for a machine that is not here" in refused.err
    assert "add --dry-run" in refused.err
    assert not (tmp_path / "run").exists()


def test_precedence_is_defaults_preset_row_file_environment_override_flag(plan, tmp_path,
                                                                          monkeypatch):  # fmt: skip
    config = tmp_path / "mine.yaml"
    names = ["per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"]
    bare = dict.fromkeys(names)

    def rate(*more):
        return plan(*more, **bare)["settings"]["learning_rate"]

    assert rate() == 2e-4
    preset = rate("--preset", "low")
    config.write_text("preset: low\nlearning_rate: 1.1e-4\n")
    found = [preset, rate("--config", config)]
    monkeypatch.setenv("LORAFIT_LEARNING_RATE", "1.2e-4")
    found.append(rate("--config", config))
    found.append(rate("--config", config, "learning_rate=1.3e-4"))
    found.append(rate("--config", config, "learning_rate=1.3e-4", "--learning-rate", "1.4e-4"))
    assert found[1:] == [1.1e-4, 1.2e-4, 1.3e-4, 1.4e-4]


def test_a_hardware_row_wins_over_its_preset(run_lorafit, tiny_model, tiny_data):
    def length(*more):
        outcome = run_lorafit(
            *("config", "show", "--preset", "high", "--json", "--data", tiny_data), *more
        )
        return json.loads(outcome.out)["settings"]["max_length"]

    row = length("--hardware", "a10g")
    assert row["origin"].startswith("hardware row a10g")
    assert length("--hardware", "a10g", "max_length=100")["value"] == 100


@pytest.mark.row("B3")
@pytest.mark.parametrize("flag", ["--preset", "--config", "--hardware", "--data", "--output-dir",
                                  "--model", "--device"])  # fmt: skip
def test_b3_an_empty_value_is_refused(run_lorafit, flag):
    for arguments in ([flag, ""], [f"{flag}="]):
        outcome = run_lorafit("train", *arguments)
        assert outcome.code == 2
        assert flag in outcome.err
        assert ("'' is not a device" if flag == "--device" else "is empty") in outcome.err


@pytest.mark.parametrize("flag", ["--data", "--validation-data"])
def test_data_that_is_not_there_is_found_before_a_model_is_looked_for(
    run_lorafit, train_arguments, tmp_path, flag
):
    missing = {flag[2:].replace("-", "_"): tmp_path / "missing.jsonl"}
    outcome = run_lorafit(*train_arguments(tmp_path / "run", model="hub/large-model", **missing))
    assert outcome.code == 3
    assert "missing.jsonl" in outcome.err
    assert "hub/large-model" not in outcome.err


@pytest.mark.parametrize("steps", [1, 3])
def test_plain_lines_come_at_logging_steps(run_lorafit, train_arguments, tmp_path, steps):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", logging_steps=steps, eval_steps=6))
    shown = [int(line.split("/")[0][5:]) for line in outcome.err.splitlines()
             if line.startswith("step ") and "/" in line.split()[1]]  # fmt: skip
    assert shown == ([1, 2, 3, 4, 5, 6] if steps == 1 else [1, 3, 6])
    assert "\r" not in outcome.err
