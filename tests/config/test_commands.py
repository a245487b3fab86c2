"""`lorafit config` and `lorafit presets`, through the real command line."""

import json

import pytest

from lorafit.cli.main import main
from lorafit.config.aliases import ALIASES
from lorafit.config.schema import Settings


@pytest.fixture(autouse=True)
def _wide_terminal_without_variables(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("LORAFIT_CACHE_DIR", raising=False)


@pytest.fixture
def lorafit(capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def test_config_show_json_has_every_setting_with_its_origin(lorafit):
    code, out, err = lorafit(
        *("config", "show", "--preset", "high", "--hardware", "a10g", "--json"),
        *("--lora_r", "64", "training.seed=7"),
    )
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert set(document["settings"]) == set(Settings.model_fields)
    settings = document["settings"]
    assert settings["lora_r"] == {"value": 64, "origin": "flag --lora-r"}
    assert settings["seed"] == {"value": 7, "origin": "override training.seed"}
    assert settings["max_length"]["value"] == 2048
    assert settings["max_length"]["origin"].startswith("hardware row a10g (presets/high.yaml:")
    assert settings["optim"] == {"value": "adamw_torch", "origin": "default"}
    assert document["batch"]["effective_batch_size"] == 32
    assert "64 is outside the recommended 8 to 32" in err


def test_config_show_prints_a_table_on_stdout_and_words_on_stderr(lorafit):
    code, out, err = lorafit("config", "show", "--preset", "low", "--hardware", "m3-18gb")
    assert code == 0
    for name in Settings.model_fields:
        assert name in out
    assert "low has a row for this device, m3-18gb" in err
    assert "32 rows a step" in err


def test_config_show_tells_the_accumulation_that_the_effective_batch_makes(lorafit):
    given = ("config", "show", "--effective-batch-size", "12", "--json")
    document = json.loads(lorafit(*given)[1])
    settings, batch = document["settings"], document["batch"]
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        assert settings[name]["value"] == batch[name] != Settings.model_fields[name].default
        assert settings[name]["origin"] == "follows from effective_batch_size 12; 8 by default"
    assert document["decided_at_launch"] == []


def test_config_show_says_what_the_planner_decides_and_where_it_is_shown(lorafit):
    planned = [
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
        *("gradient_checkpointing", "checkpointed_layers"),
    ]
    given = ("config", "show", "--preset", "balanced", "--hardware", "t4")
    document = json.loads(lorafit(*given, "--json")[1])
    assert document["decided_at_launch"] == planned
    marked = [n for n, e in document["settings"].items() if e.get("decided_at_launch")]
    assert sorted(marked) == sorted(planned)
    code, out, err = lorafit(*given)
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert all(rows[name] == ["at", "launch", "planner"] for name in planned)
    assert rows["effective_batch_size"][0] == "32"
    assert "the planner decides per_device_train_batch_size" in err
    assert "--dry-run" in err


def test_config_show_plans_nothing_that_was_asked_for(lorafit):
    given = ("config", "show", "--preset", "balanced", "--hardware", "t4", "--batch-size", "4")
    document = json.loads(lorafit(*given, "--json")[1])
    assert document["decided_at_launch"] == []
    assert document["settings"]["gradient_accumulation_steps"]["value"] == 8
    assert "the planner decides" not in lorafit(*given)[2]


def test_config_show_counts_one_device_as_train_alone_does(lorafit, monkeypatch):
    from dataclasses import replace

    from lorafit.hardware import detect

    one = detect.planned_device("a10g")
    monkeypatch.setattr(detect, "detect_device", lambda asked: replace(one, num_devices=4))
    document = json.loads(lorafit("config", "show", "--preset", "balanced", "--json")[1])
    assert document["batch"]["num_devices"] == 1
    assert document["batch"]["effective_batch_size"] == 32


def test_config_show_refuses_with_exit_2_and_no_traceback(lorafit):
    code, out, err = lorafit("config", "show", "--hardware", "a10g", "lora_rr=8", "--seed", "x")
    assert code == 2
    assert out == ""
    assert "override lora_rr: there is no such setting" in err
    assert "flag --seed: x is not a whole number" in err
    assert "Traceback" not in err


def test_config_validate_accepts_a_good_file_and_warns(lorafit, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("preset: balanced\nlora:\n  r: 64\n  alpha: 128\n")
    code, out, err = lorafit("config", "validate", str(path))
    assert (code, out) == (0, f"{path}: valid\n")
    assert "overfits sooner" in err


def test_config_validate_json_lists_every_problem(lorafit, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("lora_aplha: 1\nlora_r: 0\n")
    code, out, _ = lorafit("config", "validate", str(path), "--json")
    document = json.loads(out)
    assert code == 3
    assert document["valid"] is False
    assert [p["where"] for p in document["problems"]] == [
        f"{path}:1: lora_aplha",
        f"{path}:2: lora_r",
    ]
    assert document["problems"][0]["hint"] == "did you mean lora_alpha?"


def test_config_validate_knows_a_preset(lorafit, tmp_path):
    from lorafit.config.presets import presets_dir

    assert lorafit("config", "validate", str(presets_dir() / "high.yaml"))[0] == 0
    path = tmp_path / "mine.yaml"
    path.write_text("schema_version: 1\nsettings:\n  lora_r: 0\n")
    code, _, err = lorafit("config", "validate", str(path))
    assert code == 3
    assert f"{path}:3: lora_r: 0 is not allowed" in err
    assert "the preset has no hardware" in err


def test_config_aliases_lists_all(lorafit):
    code, out, _ = lorafit("config", "aliases")
    assert code == 0
    for alias, name in ALIASES.items():
        assert alias in out
        assert name in out
    assert json.loads(lorafit("config", "aliases", "--json")[1])["aliases"] == ALIASES


def test_presets_list_names_presets_and_rows(lorafit):
    code, out, _ = lorafit("presets", "list")
    assert code == 0
    assert "quick-test" in out
    document = json.loads(lorafit("presets", "list", "--json")[1])
    assert document["schema_version"] == 1
    balanced = document["presets"][0]
    assert balanced["name"] == "balanced"
    assert balanced["hardware"][0] == "a10g"
    assert balanced["hardware"][-1] == "default"


def test_presets_show_json_holds_the_full_flat_settings(lorafit):
    code, out, _ = lorafit("presets", "show", "production", "--json")
    document = json.loads(out)
    assert code == 0
    assert set(document) == {"schema_version", "name", "description", "settings", "hardware"}
    expected = Settings(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=16,
        num_train_epochs=20,
        learning_rate=1e-4,
    )
    assert document["settings"] == expected.model_dump(mode="json")
    assert document["hardware"] == {"default": {"effective_batch_size": 64, "max_length": 1024}}


def test_presets_show_prints_rows(lorafit):
    code, out, _ = lorafit("presets", "show", "low")
    assert code == 0
    assert "a100-40gb" in out
    assert "768" in out


def test_presets_show_of_an_unknown_name_is_a_usage_error(lorafit):
    code, out, err = lorafit("presets", "show", "hihg", "--json")
    assert (code, out) == (2, "")
    assert "did you mean high?" in err


def test_presets_diff_on_a_device_compares_what_would_run(lorafit):
    code, out, _ = lorafit("presets", "diff", "high", "low", "--hardware", "t4", "--json")
    assert code == 0
    differences = json.loads(out)["differences"]
    # Both fall to one row at a time; the T4 covers the A10G's row in neither.
    assert differences == {"max_length": {"a": 1024, "b": 768}}


def test_presets_diff_shows_rows_and_settings(lorafit):
    _, out, _ = lorafit("presets", "diff", "quick-test", "production")
    assert "num_train_epochs" in out
    assert "default: effective_batch_size" in out
    assert "same values" in lorafit("presets", "diff", "low", "low")[1]


def test_these_commands_do_not_import_torch():
    import subprocess
    import sys

    program = (
        "import sys\nfrom lorafit.cli.main import main\n"
        "try: main(['presets', 'show', 'high'])\n"
        "except SystemExit as end: code = end.code\n"
        "sys.exit(code or int(bool({'torch', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
