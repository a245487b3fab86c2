import pytest

from lorafit.config.resolve import resolve_run
from lorafit.hardware.info import DeviceInfo

A10G = DeviceInfo("cuda", "NVIDIA A10G", "a10g", 22 * 1024**3, None, "for a test")


def run(config_file=None, **given):
    base = {"preset": None, "overrides": (), "flags": {}, "environ": {}, "device": A10G}
    return resolve_run(config_file=config_file, **{**base, **given})


def test_without_a_preset_the_defaults_hold():
    resolved = run()
    assert resolved.preset is None
    assert resolved.row is None
    assert resolved.settings.per_device_train_batch_size == 8


def test_precedence_runs_from_defaults_to_flags(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("max_length = 512\nseed = 1\n[lora]\nr = 12\nalpha = 24\n")
    resolved = run(
        path,
        preset="high",
        environ={"LORAFIT_SEED": "2", "LORAFIT_LORA_RANK": "13"},
        overrides=["lora.r=14", "seed=3"],
        flags={"seed": "4"},
    )
    names = ("weight_decay", "learning_rate", "max_length", "lora_alpha", "lora_r", "seed")
    names = (*names, "per_device_train_batch_size")
    shown = {
        name: (getattr(resolved.settings, name), resolved.origins[name].kind) for name in names
    }
    assert shown == {
        "weight_decay": (0.0, "default"),
        "learning_rate": (2e-4, "preset"),
        "per_device_train_batch_size": (8, "hardware"),
        "max_length": (512, "file"),
        "lora_alpha": (24.0, "file"),
        "lora_r": (14, "override"),
        "seed": (4, "flag"),
    }
    assert resolved.origins["lora_alpha"].text == f"{path}:5"
    assert resolved.preset == "high"
    assert resolved.row is not None
    assert resolved.row.key == "a10g"


def test_origins_of_a_preset_point_at_the_line(tmp_path):
    from lorafit.config.presets import presets_dir

    origin = run(preset="balanced").origins["max_length"].text
    assert origin.startswith("hardware row a10g (presets/balanced.yaml:")
    line = int(origin.rstrip(")").rsplit(":", 1)[1])
    lines = (presets_dir() / "balanced.yaml").read_text().splitlines()
    assert lines[line - 1].strip() == "max_length: 1024"


def test_a_file_may_name_a_preset_as_its_base_and_the_flag_wins(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("schema_version: 1\npreset: low\ntraining:\n  num_train_epochs: 2\n")
    resolved = run(path)
    assert resolved.preset == "low"
    assert resolved.settings.max_length == 768
    assert resolved.settings.num_train_epochs == 2
    assert run(path, preset="high").settings.max_length == 2048


@pytest.mark.parametrize(
    "text", ["lora_r: 16\n", "lora:\n  r: 16\n", "training:\n  lora_rank: 16\n"]
)
def test_files_may_be_flat_or_in_sections(tmp_path, text):
    path = tmp_path / "mine.yml"
    path.write_text(text)
    resolved = run(path)
    assert resolved.settings.lora_r == 16
    assert resolved.is_explicit("lora_r")


def test_model_and_data_are_settings_and_sections(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: some/model\ndata:\n  max_length: 99\n")
    resolved = run(path)
    assert (resolved.settings.model, resolved.settings.max_length) == ("some/model", 99)
