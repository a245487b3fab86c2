from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.hardware.info import DeviceInfo
from lorafit.memory.closed_form import estimate_fast
from lorafit.memory.estimate import Estimate, estimate_memory
from lorafit.memory.planner import (
    FittedPlan,
    flags_between,
    nearest_fitting,
    plan_to_fit,
    throughput,
)
from lorafit.model.architectures import bundled_config
from lorafit.units import GIB, MIB

pytestmark = pytest.mark.usefixtures("quiet_libraries")

TINY: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONTEXT_BYTES = 265_499_770
"""Of an A10G."""


def a10g(usable_bytes: int) -> DeviceInfo:
    return replace(planned_device("a10g"), usable_bytes=usable_bytes)


def settings(**options: Any) -> Settings:
    return Settings(model="tiny", torch_compile=False, max_length=512, **options)


@cache
def exact(run: Settings, usable_bytes: int) -> Estimate:
    """Trace each question once in all of these tests."""
    return estimate_memory(run, TINY, a10g(usable_bytes))


def plan(usable_mib: int, **options: Any) -> FittedPlan:
    return plan_to_fit(
        settings(),
        TINY,
        a10g(usable_mib * MIB),
        16,
        estimate=lambda run, _, device: exact(run, device.usable_bytes),
        **options,
    )


def with_flags(run: Settings, flags: str) -> Settings:
    """Return settings with flags such as `--max-length 8 --no-double-quant` applied."""
    changes: dict[str, Any] = {}
    for flag in flags.removeprefix("--").split(" --"):
        name, _, value = flag.replace("-", "_").partition(" ")
        changes[name.removeprefix("no_")] = int(value) if value else not name.startswith("no_")
    return Settings(**{**run.model_dump(), **changes})


def test_roomy_device_gets_one_large_pass_without_checkpoints() -> None:
    found = plan(22_000)
    assert found.settings is not None
    assert found.estimate is not None
    assert not found.settings.gradient_checkpointing
    assert found.settings.checkpointed_layers is None
    assert found.settings.per_device_train_batch_size == 16
    assert found.settings.gradient_accumulation_steps == 1
    assert found.reason.startswith(
        "micro-batch 16 x 1, no layers checkpointed: the fastest of 20 plans that fits "
        "90% of 21.5 GiB (takes "
    )


def test_narrow_device_gets_a_plan_whose_exact_estimate_fits() -> None:
    found = plan(700)
    assert found.settings is not None
    assert found.estimate is not None
    assert found.estimate.peak.process_bytes <= 0.9 * 700 * MIB
    assert found.estimate == replace(
        estimate_memory(found.settings, TINY, a10g(700 * MIB)),
        elapsed_seconds=found.estimate.elapsed_seconds,
    )
    rows = found.settings.per_device_train_batch_size
    assert rows * found.settings.gradient_accumulation_steps == 16
    assert found.rejections()
    assert all("micro-batch" in sentence for sentence in found.rejections())


def test_smaller_share_of_the_memory_never_gives_a_larger_plan() -> None:
    peaks = []
    for fraction in (0.6, 0.9):
        found = plan(1000, memory_fraction=fraction)
        assert found.estimate is not None
        assert found.estimate.peak.process_bytes <= fraction * 1000 * MIB
        peaks.append(found.estimate.peak.process_bytes)
    assert peaks == sorted(peaks)


def test_nothing_fits_is_said_with_what_the_smallest_plan_takes() -> None:
    found = plan(300)
    assert found.settings is None
    assert found.estimate is not None
    assert found.reason.startswith("none of 20 plans fits 90% of 300 MiB: even micro-batch 1 x 16")
    assert found.estimate.peak.process_bytes > 0.9 * 300 * MIB


def test_rows_that_are_short_leave_room_for_more_of_them() -> None:
    long = plan(700)
    short = plan(700, row_lengths=[40, 60, 61] * 20)
    assert long.settings is not None
    assert short.settings is not None
    assert short.estimate is not None
    assert (
        short.settings.per_device_train_batch_size > long.settings.per_device_train_batch_size
        or not short.settings.gradient_checkpointing
    )
    # Padded to a multiple of 8; the setting itself stays.
    assert short.estimate.settings["max_length"] == 64
    assert short.settings.max_length == 512


def test_devices_share_the_effective_batch() -> None:
    found = plan(22_000, num_devices=2)
    assert found.settings is not None
    assert found.settings.per_device_train_batch_size == 8
    odd = plan_to_fit(settings(), TINY, a10g(GIB), 7, num_devices=2, estimate=estimate_memory)
    assert odd.settings is None
    assert odd.reason == "an effective batch of 7 does not split over 2 devices"


def test_questions_are_stored_and_answered_again_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("lorafit.memory.cache.default_folder", lambda: tmp_path)
    device = a10g(700 * MIB)
    first = plan_to_fit(settings(), TINY, device, 16)
    again = plan_to_fit(settings(), TINY, device, 16)
    assert first.estimate is not None
    assert again.estimate is not None
    assert (first.estimate.cached, again.estimate.cached) == (False, True)
    assert again.estimate.peak == first.estimate.peak
    assert (again.settings, again.reason) == (first.settings, first.reason)


def test_refused_run_is_told_flags_that_fit() -> None:
    run = settings(
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
    )
    device = a10g(560 * MIB)
    assert estimate_memory(run, TINY, device).verdict == "exceeds"
    flags = nearest_fitting(run, TINY, device, 16, estimate=estimate_memory)
    assert flags is not None
    assert flags.startswith("--per-device-train-batch-size ")
    assert estimate_memory(with_flags(run, flags), TINY, device).verdict == "fits"


def test_weights_that_are_too_large_are_told_to_quantize() -> None:
    wide = {
        **TINY,
        "num_hidden_layers": 4,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
    }
    asked: list[str] = []

    def estimate(run: Settings, config: dict[str, Any], device: DeviceInfo) -> Estimate:
        asked.append(run.quantization)
        return estimate_memory(run, config, device)

    # 4 layers of 63 M weights: 0.5 GiB in bfloat16, 0.13 GiB in NF4.
    device = a10g(CONTEXT_BYTES + 580 * MIB)
    flags = nearest_fitting(settings(), wide, device, 4, estimate=estimate)
    assert flags is not None
    assert flags.endswith("--quantization nf4")
    assert asked[0] == "none"
    assert nearest_fitting(settings(), wide, a10g(300 * MIB), 4, estimate=estimate_memory) is None


def test_plan_that_only_fits_to_the_last_bytes_is_named_rather_than_none() -> None:
    smallest = plan(300).estimate
    assert smallest is not None
    device = a10g(smallest.peak.process_bytes + MIB)
    assert plan_to_fit(settings(), TINY, device, 16, estimate=estimate_memory).settings is None
    flags = nearest_fitting(settings(), TINY, device, 16, estimate=estimate_memory)
    assert flags is not None
    assert "--quantization" not in flags
    assert flags.startswith("--per-device-train-batch-size 1 --gradient-accumulation-steps 16")


@pytest.mark.parametrize(
    ("before", "after", "more"),
    [
        ({}, {}, ""),
        ({"gradient_checkpointing": False}, {}, " --gradient-checkpointing"),
        ({}, {"gradient_checkpointing": False}, " --no-gradient-checkpointing"),
        ({}, {"checkpointed_layers": 3}, " --checkpointed-layers 3"),
        ({"checkpointed_layers": 3}, {"checkpointed_layers": 3}, ""),
        ({}, {"quantization": "nf4"}, " --quantization nf4"),
    ],
)
def test_flags_name_what_differs(before: dict[str, Any], after: dict[str, Any], more: str) -> None:
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16}
    flags = flags_between(settings(**before), settings(**after, **split))
    assert flags == f"--per-device-train-batch-size 2 --gradient-accumulation-steps 16{more}"


def test_throughput_comes_from_the_catalog_and_is_lower_in_fp32() -> None:
    t4 = planned_device("t4")
    assert throughput(t4, "float16").matmul_flops == 65e12
    assert throughput(t4, "float32").matmul_flops == 65e12 / 8
    unknown = replace(t4, catalog_key=None)
    assert throughput(unknown, "float16").matmul_flops > 0


@pytest.mark.slow
def test_phi_2_on_an_a10g_is_planned_to_its_last_gigabytes() -> None:
    config = bundled_config("microsoft/phi-2")
    assert config is not None
    device = planned_device("a10g")
    run = Settings(model="microsoft/phi-2", torch_compile=False, lora_r=16, max_length=1024)
    found = plan_to_fit(run, config, device, 32, estimate=estimate_memory)
    assert found.settings is not None
    exact = estimate_memory(found.settings, config, device).peak.process_bytes
    # Within the share, and less than a layer's activations below it.
    assert 0.9 * device.usable_bytes - GIB < exact <= 0.9 * device.usable_bytes
    rows = found.settings.per_device_train_batch_size
    assert rows * found.settings.gradient_accumulation_steps == 32


@pytest.fixture
def _closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the closed form's answers for exact ones: what is planned with them is no matter."""
    monkeypatch.setattr("lorafit.memory.planner.estimate_with_cache", estimate_fast)


MISTRAL = bundled_config("mistralai/Mistral-7B-v0.1")


@pytest.mark.usefixtures("_closed_form")
def test_what_processes_exchange_counts_in_their_plan() -> None:
    alone, shared = (
        plan_to_fit(Settings(max_length=512), MISTRAL, planned_device("a10g"), 8, num_devices=count)
        for count in (1, 4)
    )
    assert alone.estimate is not None
    assert shared.estimate is not None
    assert shared.estimate.processes["exchange_bytes"] == 25 * MIB
    assert shared.estimate.processes["parallelism"] == "ddp"
    assert alone.estimate.processes["count"] == 1


@pytest.mark.usefixtures("_closed_form")
def test_weights_that_one_device_cannot_hold_are_planned_as_shares() -> None:
    run, device = Settings(max_length=512), replace(planned_device("t4"), usable_bytes=12 * GIB)
    whole = plan_to_fit(run, MISTRAL, device, 8, num_devices=4)
    assert whole.settings is None
    shared = plan_to_fit(run, MISTRAL, device, 8, num_devices=4, is_sharded=True)
    assert shared.settings is not None
    assert shared.estimate is not None
    assert shared.estimate.processes["parallelism"] == "fsdp"
    assert shared.estimate.peak.process_bytes <= 0.92 * device.usable_bytes


@pytest.mark.usefixtures("_closed_form")
@pytest.mark.parametrize(
    ("num_devices", "flag"), [(4, "--parallelism fsdp"), (1, "--quantization nf4")]
)
def test_a_run_of_several_processes_is_told_to_share_its_weights(
    num_devices: int, flag: str
) -> None:
    run = Settings(max_length=512, parallelism="ddp")
    device = replace(planned_device("t4"), usable_bytes=12 * GIB)  # the weights take 13.5
    flags = nearest_fitting(run, MISTRAL, device, 8, num_devices=num_devices)
    assert flags is not None
    assert flags.endswith(flag)
