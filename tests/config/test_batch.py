import pytest

from lorafit.config.batch import resolve_batch
from lorafit.config.layers import Given, Layer, Resolved, flags_layer, resolve_layers
from lorafit.errors import ConfigError, ExitCode

MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
EFFECTIVE = "effective_batch_size"


def resolved(preset: dict[str, int], **flags: str) -> Resolved:
    values = {name: Given(value, "p.yaml:1") for name, value in preset.items()}
    return resolve_layers([Layer("preset p", "preset", values), flags_layer(flags)])


@pytest.mark.parametrize(
    ("preset", "flags", "devices", "expected"),
    [
        # The product, where no effective batch is set.
        ({}, {}, 1, (8, 8, 64)),
        ({MICRO: 4, ACCUMULATION: 8}, {}, 2, (4, 8, 64)),
        # Accumulation follows from an effective batch.
        ({}, {EFFECTIVE: "32"}, 1, (8, 4, 32)),
        ({}, {EFFECTIVE: "32"}, 4, (8, 1, 32)),
        ({MICRO: 2, ACCUMULATION: 5, EFFECTIVE: 32}, {}, 1, (2, 16, 32)),
        ({EFFECTIVE: 32}, {MICRO: "4"}, 2, (4, 4, 32)),
        # A micro-batch that nobody asked for gives way.
        ({MICRO: 3}, {EFFECTIVE: "32"}, 1, (2, 16, 32)),
        ({MICRO: 8}, {EFFECTIVE: "4"}, 2, (2, 1, 4)),
        ({MICRO: 8}, {EFFECTIVE: "7"}, 1, (7, 1, 7)),
        # An accumulation that was asked for beats a preset's effective batch.
        ({MICRO: 4, EFFECTIVE: 32}, {ACCUMULATION: "2"}, 1, (4, 2, 8)),
        # So does a micro-batch that does not divide it.
        ({EFFECTIVE: 32}, {MICRO: "3"}, 1, (3, 11, 33)),
        ({EFFECTIVE: 16}, {MICRO: "3"}, 2, (3, 3, 18)),
        # A preset's effective batch is kept on any number of devices that can share it.
        ({MICRO: 4, EFFECTIVE: 64}, {}, 1, (4, 16, 64)),
        ({MICRO: 4, EFFECTIVE: 64}, {}, 2, (4, 8, 64)),
        ({MICRO: 4, EFFECTIVE: 64}, {}, 4, (4, 4, 64)),
        ({MICRO: 4, EFFECTIVE: 64}, {}, 16, (4, 1, 64)),
        ({MICRO: 4, EFFECTIVE: 64}, {}, 32, (2, 1, 64)),
        ({EFFECTIVE: 2}, {MICRO: "8"}, 1, (8, 1, 8)),
        # All three, in agreement.
        ({}, {MICRO: "4", ACCUMULATION: "4", EFFECTIVE: "32"}, 2, (4, 4, 32)),
    ],
)
def test_micro_batch_times_accumulation_times_devices(preset, flags, devices, expected):
    plan = resolve_batch(resolved(preset, **flags), devices)
    micro, accumulation, effective = expected
    assert plan.per_device_train_batch_size == micro
    assert plan.gradient_accumulation_steps == accumulation
    assert plan.effective_batch_size == effective == micro * accumulation * devices
    assert plan.num_devices == devices
    assert plan.reason


def test_a_lowered_micro_batch_says_so():
    plan = resolve_batch(resolved({MICRO: 3}, effective_batch_size="32"), 1)
    assert "micro-batch 3 was lowered, as 32 is no multiple of it" in plan.reason


def test_a_contradiction_shows_the_arithmetic():
    flags = {MICRO: "4", ACCUMULATION: "4", EFFECTIVE: "64"}
    with pytest.raises(ConfigError) as caught:
        resolve_batch(resolved({}, **flags), 2)
    text = "4 rows x 4 accumulation x 2 devices = 32, but effective_batch_size asks for 64"
    assert text in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("micro", "effective", "devices", "nearest"),
    [("3", "8", 1, "6 or 9"), ("4", "30", 2, "24 or 32"), ("8", "4", 1, "8")],
)
def test_an_impossible_effective_batch_names_those_that_work(micro, effective, devices, nearest):
    flags = {MICRO: micro, EFFECTIVE: effective}
    with pytest.raises(ConfigError) as caught:
        resolve_batch(resolved({}, **flags), devices)
    hint = f"the nearest values that work: effective_batch_size {nearest}"
    assert caught.value.hint == hint
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("flags", "devices", "counts", "batches"),
    [
        ({}, 3, "2 or 4 devices", "63 or 66"),
        ({}, 5, "4 or 8 devices", "60 or 65"),
        ({}, 65, "64 devices", "65"),
        ({MICRO: "2"}, 6, "4 or 8 devices", "60 or 72"),
    ],
)
def test_devices_that_cannot_share_the_effective_batch_are_refused(flags, devices, counts, batches):
    with pytest.raises(ConfigError) as caught:
        resolve_batch(resolved({MICRO: 4, EFFECTIVE: 64}, **flags), devices)
    assert f"64 cannot be split over {devices} devices" in str(caught.value)
    assert f"the nearest numbers of devices that keep 64: {counts};" in caught.value.hint
    assert caught.value.hint.endswith(f"work on {devices}: effective_batch_size {batches}")


def test_an_effective_batch_that_was_typed_outweighs_a_groups_accumulation():
    group = Layer("training=x", "group", {ACCUMULATION: Given(1, "x.yaml:1")})
    layers = resolve_layers([group, flags_layer({EFFECTIVE: "32", MICRO: "4"})])
    assert resolve_batch(layers, 1).gradient_accumulation_steps == 8


def test_too_few_rows_for_the_devices_is_refused():
    with pytest.raises(ConfigError, match="9 is not a multiple of 2"):
        resolve_batch(resolved({}, effective_batch_size="9"), 2)
