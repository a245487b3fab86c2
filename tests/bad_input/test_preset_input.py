"""Rows B2 to B4, B23, B34 and B35: presets that do not exist or are wrong."""

from pathlib import Path

import pytest

from lorafit.config.presets import load_preset, load_preset_file
from lorafit.config.resolve import resolve_run
from lorafit.errors import ConfigError, ExitCode, UsageError
from lorafit.hardware.info import DeviceInfo

CPU = DeviceInfo("cpu", "a CPU", "cpu", 8 * 1024**3, None, "for a test")
GOOD = """\
schema_version: 1
name: mine
description: "Mine"
settings:
  lora_r: 16
hardware:
  a10g:
    per_device_train_batch_size: 4
  default:
    effective_batch_size: 32
    max_length: 512
"""


def preset_error(tmp_path: Path, old: str, new: str) -> ConfigError:
    assert old in GOOD
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_preset_file(path, "mine")
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    return caught.value


def test_the_preset_that_the_others_break_is_good(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_preset_file(path, "mine").settings == {"lora_r": 16}


@pytest.mark.row("B2")
@pytest.mark.parametrize(
    ("name", "nearest"), [("nope", None), ("balancd", "balanced"), ("quicktest", "quick-test")]
)
def test_b2_an_unknown_preset_lists_them_with_the_nearest(name, nearest):
    with pytest.raises(UsageError) as caught:
        load_preset(name)
    assert caught.value.exit_code == ExitCode.USAGE
    assert f"there is no preset '{name}'" in str(caught.value)
    assert "presets: balanced, high, low" in caught.value.hint
    assert nearest is None or caught.value.hint.startswith(f"did you mean {nearest}?")


@pytest.mark.row("B2")
def test_b2_a_wrong_base_in_a_file_names_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\npreset: balancd\n")
    with pytest.raises(ConfigError) as caught:
        resolve_run(preset=None, config_file=path, overrides=(), flags={}, environ={}, device=CPU)
    assert "c.yaml:2: preset: there is no preset 'balancd'" in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.row("B3")
def test_b3_an_empty_preset_is_refused():
    with pytest.raises(UsageError, match="the preset's name is empty"):
        load_preset("")


@pytest.mark.row("B4")
@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a\0b",
        "x" * 300,
        "balanced.yaml",
        "Balanced",
        "a/b/c",
        "..",
        "./balanced",
        "balanced\n",
        "b\u0430lanced",  # a Cyrillic a
    ],
)
def test_b4_a_preset_is_a_name_and_never_a_path(name):
    with pytest.raises(UsageError) as caught:
        load_preset(name)
    assert "is not a preset's name" in str(caught.value)
    assert "a file goes to --config" in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\0" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.row("B23")
@pytest.mark.parametrize(
    ("old", "key", "example"),
    [
        ("schema_version: 1\n", "schema_version", "schema_version: 1"),
        ("name: mine\n", "name", "name: my-preset"),
        ('description: "Mine"\n', "description", "description: What it is for"),
        ("settings:\n  lora_r: 16\n", "settings", "  lora_r: 8"),
    ],
)
def test_b23_a_missing_key_is_shown_with_an_example(tmp_path, old, key, example):
    error = preset_error(tmp_path, old, "")
    assert f"the preset has no {key}, which every preset needs" in str(error)
    assert example in (error.hint or "")


@pytest.mark.row("B23")
def test_b23_a_preset_needs_a_complete_default_row(tmp_path):
    error = preset_error(tmp_path, "  default:\n", "  h100:\n")
    assert "there is no `default:` row" in str(error)
    error = preset_error(tmp_path, "    max_length: 512\n", "")
    assert "presets/mine.yaml:9: hardware.default: the default row has no max_length" in str(error)


@pytest.mark.row("B34")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trust_remote_code: true", "lorafit never runs code that comes with a model"),
        ("hub_token: hf_abcdef", "a secret must not stand in settings"),
        ("output_dir: /tmp/x", "output_dir belongs to a machine or a person"),
        ("data: mine.jsonl", "data belongs to a machine or a person"),
        ("device: cuda:0", "device belongs to a machine or a person"),
    ],
)
@pytest.mark.parametrize("place", ["settings", "row"])
def test_b34_presets_hold_no_code_secrets_or_paths(tmp_path, line, message, place):
    if place == "settings":
        error = preset_error(tmp_path, "  lora_r: 16\n", f"  {line}\n")
    else:
        error = preset_error(tmp_path, "    max_length: 512", f"    max_length: 512\n    {line}")
    assert message in str(error)
    assert f"presets/mine.yaml:{5 if place == 'settings' else 12}: " in str(error)
    assert "hf_abcdef" not in str(error)


@pytest.mark.row("B35")
def test_b35_a_preset_of_a_newer_lorafit_says_what_it_needs(tmp_path):
    error = preset_error(tmp_path, "schema_version: 1", "schema_version: 99")
    assert "presets/mine.yaml:1: schema_version: this preset has schema 99" in str(error)
    assert "it needs a newer lorafit" in str(error)
    assert error.hint == "pip install --upgrade lorafit"


@pytest.mark.row("B35")
@pytest.mark.parametrize("value", ["true", "'1'", "1.0", "0", "[1]", "null"])
def test_b35_a_schema_version_is_the_number(tmp_path, value):
    error = preset_error(tmp_path, "schema_version: 1", f"schema_version: {value}")
    assert "is not a schema version" in str(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("settings:", "setings:", "did you mean settings?"),
        ("  a10g:", "  a10h:", "hardware.a10h: the catalog has no such device"),
        ("name: mine", "name: other", "the preset calls itself 'other', its file 'mine'"),
        ("  lora_r: 16", "  lora_aplha: 16", "did you mean lora_alpha?"),
        ("  lora_r: 16", "  lora_r: 0", "0 is not allowed"),
        ("per_device_train_batch_size: 4", "batch: 4", "this is a section: it holds settings"),
        ('description: "Mine"', "description: [1]", "description: it must be text"),
        ("settings:\n  lora_r: 16\n", "settings: 5\n", "settings must be `name: value` lines"),
        ("  lora_r: 16", "  warmup_steps: 9\n  max_steps: 5", "does not end within 5 steps"),
    ],
)
def test_a_damaged_preset_names_the_damage(tmp_path, old, new, message):
    error = preset_error(tmp_path, old, new)
    assert message in f"{error} {error.hint}"
    assert "presets/mine.yaml:" in str(error)


def test_all_problems_of_a_preset_come_at_once(tmp_path):
    error = preset_error(
        tmp_path, "  lora_r: 16\n", "  lora_r: 0\n  optim: best\n  nonsense_key: 1\n"
    )
    assert len(error.problems) == 3
