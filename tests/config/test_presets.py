import re

import pytest

from lorafit.config.batch import resolve_batch
from lorafit.config.layers import resolve_layers
from lorafit.config.presets import list_presets, load_preset, preset_names, presets_dir
from lorafit.config.schema import recommended_range
from lorafit.hardware.catalog import CATALOG
from lorafit.hardware.info import DeviceInfo
from lorafit.units import GIB

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
NAMES = ("balanced", "high", "low", "memory-limited", "production", "quick-test", "safe")


def device(kind: str, key: str | None, gib: float) -> DeviceInfo:
    return DeviceInfo(kind, f"Some {kind} device", key, int(gib * GIB), None, "for a test")


def test_the_shipped_presets_are_these():
    # Those of families, such as qlora/default, are in tests/systems.
    assert tuple(name for name in preset_names() if "/" not in name) == NAMES
    assert tuple(preset.name for preset in list_presets()) == preset_names()


# Micro-batch, accumulation and max_length of the Training Guide's memory examples.
GUIDE_ROWS = {
    ("high", "a10g"): (8, 4, 2048),
    ("balanced", "a10g"): (4, 8, 1024),
    ("low", "a10g"): (2, 16, 768),
    ("high", "m3-18gb"): (3, 8, 1024),
    ("balanced", "m3-18gb"): (2, 16, 1024),
    ("low", "m3-18gb"): (2, 16, 768),
    ("safe", "m3-18gb"): (1, 32, 768),
}


@pytest.mark.parametrize(("name", "row"), GUIDE_ROWS)
def test_rows_are_those_of_the_guide(name, row):
    values = load_preset(name).hardware[row]
    assert (values[MICRO], values[ACCUMULATION], values["max_length"]) == GUIDE_ROWS[name, row]
    assert values.get("gradient_checkpointing", True) is True


@pytest.mark.parametrize("name", ["low", "safe"])
def test_the_smallest_apple_rows_ask_for_checkpointing(name):
    assert load_preset(name).hardware["m3-18gb"]["gradient_checkpointing"] is True


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quick-test", {MICRO: 2, ACCUMULATION: 8, "num_train_epochs": 3, "learning_rate": 2e-4}),
        ("production", {MICRO: 4, ACCUMULATION: 16, "num_train_epochs": 20, "learning_rate": 1e-4}),
        ("memory-limited", {MICRO: 2, ACCUMULATION: 32, "max_length": 768}),
    ],
)
def test_recommended_configurations_are_those_of_the_guide(name, expected):
    settings = load_preset(name).settings
    assert {key: settings[key] for key in expected} == expected
    assert settings["gradient_checkpointing"] is True


@pytest.mark.parametrize("name", preset_names())
def test_every_row_resolves_and_its_batch_divides(name):
    preset = load_preset(name)
    assert preset.description
    assert "default" in preset.rows
    for key in preset.rows:
        resolved = resolve_layers([preset.layer, preset.rows[key]])
        plan = resolve_batch(resolved, num_devices=1)
        assert plan.effective_batch_size % plan.per_device_train_batch_size == 0
        assert resolved.warnings == ()


@pytest.mark.parametrize("name", ["high", "balanced", "low"])
@pytest.mark.parametrize("row", ["a100-40gb", "a100-80gb", "h100"])
def test_larger_cards_take_larger_passes_of_the_same_effective_batch(name, row):
    rows = load_preset(name).hardware
    assert rows[row][MICRO] > rows["a10g"][MICRO]
    assert rows[row][MICRO] * rows[row][ACCUMULATION] == 32
    assert rows[row]["max_length"] == rows["a10g"]["max_length"]


@pytest.mark.parametrize("name", preset_names())
def test_every_key_has_its_reason_in_a_comment_above_it(name):
    lines = (presets_dir() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r"\s*[\w-]+:", line)]
    assert len(keys) >= 10
    for number in keys:
        above = lines[number - 1].strip()
        assert above.startswith("# "), f"{name}.yaml:{number + 1} has no comment above it"


@pytest.mark.parametrize("name", preset_names())
def test_learning_rates_of_presets_are_recommended_ones(name):
    advised = recommended_range("learning_rate")
    assert advised is not None
    resolved = resolve_layers([load_preset(name).layer])
    assert advised.low <= resolved.settings.learning_rate <= advised.high


def test_a_device_with_a_row_gets_it():
    choice = load_preset("high").choose_row(device("cuda", "a10g", 22))
    assert choice.key == "a10g"
    assert choice.values == {MICRO: 8, ACCUMULATION: 4, "max_length": 2048}
    assert choice.reason == "high has a row for this device, a10g (Some cuda device)"


@pytest.mark.parametrize(
    ("kind", "gib", "micro", "reason"),
    [
        ("cuda", 23.5, 8, "that of a10g, the largest cuda row whose "),
        ("cuda", 48, 16, "that of a100-40gb, the largest cuda row"),
        ("cuda", 180, 32, "the largest cuda row whose 79."),
        ("cuda", 14.6, 1, "every cuda row is for more than its 14.6 GiB: micro-batch 1"),
        ("mps", 27, 3, "that of m3-18gb, the largest mps row"),
        ("mps", 10, 1, "every mps row is for more than its 10.0 GiB: micro-batch 1"),
        ("cpu", 500, 1, "no row is for a cpu device, so the micro-batch is 1"),
    ],
)
def test_other_devices_take_the_micro_batch_of_the_largest_row_they_cover(kind, gib, micro, reason):
    choice = load_preset("high").choose_row(device(kind, None, gib))
    assert choice.key == "default"
    assert choice.values == {"effective_batch_size": 32, "max_length": 1024, MICRO: micro}
    assert reason in choice.reason
    assert f"high has no row for Some {kind} device" in choice.reason


def test_safe_takes_one_row_at_a_time_on_any_device():
    for kind, gib in (("cuda", 180), ("cuda", 8), ("mps", 100), ("cpu", 4)):
        values = load_preset("safe").choose_row(device(kind, None, gib)).values
        assert values == {MICRO: 1, "effective_batch_size": 32, "max_length": 768}


@pytest.mark.parametrize(("name", "micro"), [("quick-test", 2), ("production", 4)])
def test_a_preset_without_rows_keeps_its_own_micro_batch(name, micro):
    preset = load_preset(name)
    choice = preset.choose_row(device("cuda", "h100", 79))
    resolved = resolve_layers([preset.layer, choice.layer])
    assert resolve_batch(resolved, 1).per_device_train_batch_size == micro
    assert choice.reason.endswith("the micro-batch is the preset's own")


@pytest.mark.parametrize("key", [k for k in CATALOG if CATALOG[k].kind != "cpu"])
def test_every_known_device_gets_a_batch_from_every_preset(key):
    entry = CATALOG[key]
    here = DeviceInfo(entry.kind, entry.name, key, entry.usable_bytes, None, "for a test")
    for preset in map(load_preset, NAMES):
        choice = preset.choose_row(here)
        plan = resolve_batch(resolve_layers([preset.layer, choice.layer]), 1)
        expected = {"quick-test": 16, "production": 64, "memory-limited": 64}.get(preset.name, 32)
        if (preset.name, key) == ("high", "m3-18gb"):
            expected = 24
        assert plan.effective_batch_size == expected
