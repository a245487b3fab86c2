from typing import Any

import pytest

from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, DeviceError, ModelError
from lorafit.hardware.detect import planned_device
from lorafit.memory.estimate import Estimate, estimate_memory
from lorafit.memory.gpu import GpuTraits, context_bytes
from lorafit.units import MIB

pytestmark = pytest.mark.usefixtures("quiet_libraries")

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def estimate(
    hardware: str = "t4", config: dict[str, Any] | None = None, **options: Any
) -> Estimate:
    values: dict[str, Any] = {
        "model": "tiny",
        "max_length": 128,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "torch_compile": False,
    }
    settings = Settings(**{**values, **options})
    return estimate_memory(settings, config or CONFIG, planned_device(hardware))


@pytest.mark.parametrize("hardware", ["t4", "a100-40gb", "h100", "m3-18gb"])
def test_parts_add_up_to_the_process_on_every_kind_of_device(hardware: str) -> None:
    result = estimate(hardware)
    assert sum(result.breakdown.values()) == result.peak.process_bytes
    assert all(part >= 0 for part in result.breakdown.values())
    assert result.peak.allocated_bytes <= result.peak.reserved_bytes < result.peak.process_bytes


def test_document_has_exactly_the_fields_that_were_promised() -> None:
    document = estimate().document()
    assert set(document) == {
        "schema_version",
        "model",
        "hardware",
        "settings",
        "peak",
        "breakdown",
        "capacity_bytes",
        "headroom_bytes",
        "verdict",
        "calibrated",
        "processes",
        "reasons",
        "elapsed_seconds",
    }
    assert set(document["peak"]) == {
        "allocated_bytes",
        "reserved_bytes",
        "process_bytes",
        "phase",
    }
    assert set(document["breakdown"]) == {
        "weights_bytes",
        "adapter_bytes",
        "gradient_bytes",
        "optimizer_bytes",
        "activation_bytes",
        "logits_bytes",
        "workspace_bytes",
        "fragmentation_bytes",
        "context_bytes",
    }
    assert document["headroom_bytes"] == (
        document["capacity_bytes"] - document["peak"]["process_bytes"]
    )


def test_small_run_fits_and_says_how_much_stays_free() -> None:
    result = estimate()
    assert result.verdict == "fits"
    assert result.reasons[-1].startswith("fits: ")
    assert any(reason.startswith("float16: ") for reason in result.reasons)
    assert any("measured on a T4" in reason for reason in result.reasons)


def test_long_rows_with_a_large_vocabulary_exceed_a_small_card() -> None:
    config = {**CONFIG, "vocab_size": 131_072, "max_position_embeddings": 16_384}
    result = estimate(config=config, max_length=8192, per_device_train_batch_size=8)
    assert result.verdict == "exceeds"
    assert result.headroom_bytes < 0
    assert "more than the 14.6 GiB that NVIDIA T4 can give" in result.reasons[-1]


def test_more_rows_never_take_less() -> None:
    peaks = [estimate(per_device_train_batch_size=rows).peak.allocated_bytes for rows in (1, 2, 4)]
    assert peaks == sorted(peaks)


def test_flash_attention_is_refused_off_nvidia_and_named() -> None:
    with pytest.raises(ConfigError, match="flash_attention_2 needs an NVIDIA GPU"):
        estimate("m3-18gb", attn_implementation="flash_attention_2")


def test_bfloat16_on_a_t4_is_refused_as_training_refuses_it() -> None:
    with pytest.raises(DeviceError, match="cannot compute in bfloat16"):
        estimate(compute_dtype="bfloat16")


@pytest.mark.parametrize(
    ("dtype", "config"),
    [("bfloat16", CONFIG), ("float16", {**CONFIG, "model_type": "phi"})],
)
def test_a_script_that_lorafit_would_not_run_is_estimated_as_asked_and_told_why(
    dtype: str, config: dict[str, Any]
) -> None:
    asked = estimate(config=config, compute_dtype=dtype, kernels="stock")
    wide = estimate(config=config, compute_dtype="float32", kernels="stock")
    ratio = asked.breakdown["weights_bytes"] / wide.breakdown["weights_bytes"]
    assert ratio == pytest.approx(0.5, rel=0.02)
    assert any(reason.startswith(f"{dtype}: as asked for, though ") for reason in asked.reasons)
    with pytest.raises(DeviceError):
        estimate(config=config, compute_dtype=dtype)


def test_unknown_target_module_is_refused_as_training_refuses_it() -> None:
    with pytest.raises(ConfigError, match="Wqkv"):
        estimate(target_modules=("Wqkv",))


def test_configuration_of_no_architecture_is_named() -> None:
    with pytest.raises(ModelError, match="tiny: transformers does not accept"):
        estimate(config={**CONFIG, "model_type": "no-such-model"})


def test_context_is_measured_where_it_can_be_and_otherwise_called_a_fit() -> None:
    assert context_bytes(GpuTraits((7, 5), 40), "t4")[0] == 147_718_144
    size, reason = context_bytes(GpuTraits((8, 9), 142), None)
    assert abs(size / MIB - 426) < 5
    assert reason.startswith("fitted")
