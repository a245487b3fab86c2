import importlib.metadata
from dataclasses import replace

import pytest

from lorafit.config.schema import Settings
from lorafit.errors import DeviceError, ExitCode
from lorafit.hardware.capabilities import (
    check_supported,
    effective_torch_compile,
    verify_supported,
)
from lorafit.hardware.detect import planned_device
from lorafit.hardware.precision import choose_compute_dtype

T4 = planned_device("t4")
A10G = planned_device("a10g")
M3 = planned_device("m3-18gb")
OLD_MAC = replace(M3, supports_bfloat16=False)
NEW_CPU = replace(planned_device("cpu"), supports_bfloat16=True)
OLD_CPU = replace(NEW_CPU, supports_bfloat16=False)


@pytest.mark.parametrize(
    ("device", "model_type", "stored", "dtype", "reason"),
    [
        (A10G, "phi", "float16", "bfloat16", "in hardware"),
        (M3, "llama", "bfloat16", "bfloat16", "in hardware"),
        (T4, "llama", "bfloat16", "float16", "lacks bfloat16"),
        (T4, "phi", "float16", "float32", "65504"),
        (OLD_MAC, "gemma3_text", "bfloat16", "float32", "65504"),
        (NEW_CPU, "phi", "float16", "bfloat16", "stored in float16"),
        (NEW_CPU, "phi", "float32", "float32", "stored in float32"),
        (NEW_CPU, "phi", None, "float32", "stored in float32"),
        (OLD_CPU, "phi", "float16", "float32", "no bfloat16 instructions"),
    ],
)
def test_chooses_the_dtype_with_a_reason(device, model_type, stored, dtype, reason):
    choice = choose_compute_dtype(device, "auto", model_type, stored)
    assert choice.value == dtype
    assert reason in choice.reason


@pytest.mark.parametrize(
    ("device", "requested", "model_type", "message", "alternative"),
    [
        (T4, "bfloat16", "llama", "8.0", "float16"),
        (T4, "bfloat16", "phi", "8.0", "float32"),
        (OLD_MAC, "bfloat16", "llama", "macOS 14", "float16"),
        (A10G, "float16", "phi", "attention", "bfloat16"),
        (T4, "float16", "gemma3", "Gemma 3", "float32"),
        (NEW_CPU, "float16", "phi", "attention", "bfloat16"),
    ],
)
def test_refuses_a_dtype_that_cannot_work(device, requested, model_type, message, alternative):
    with pytest.raises(DeviceError, match=message) as caught:
        choose_compute_dtype(device, requested, model_type)
    assert caught.value.exit_code == ExitCode.DEVICE
    assert f"--compute-dtype {alternative}," in (caught.value.hint or "")


def test_honours_a_dtype_that_works():
    assert choose_compute_dtype(A10G, "float32", "phi").value == "float32"
    assert choose_compute_dtype(T4, "float16", "llama").value == "float16"
    assert "emulates" in choose_compute_dtype(OLD_CPU, "bfloat16", "phi").reason


@pytest.mark.parametrize(
    ("device", "changes", "setting"),
    [
        (NEW_CPU, {"optim": "adamw_8bit"}, "optim"),
        (M3, {"optim": "paged_adamw_8bit"}, "optim"),
        (M3, {"quantization": "int8"}, "quantization"),
        (NEW_CPU, {"quantization": "int8", "use_dora": True}, "quantization"),
        (T4, {"attn_implementation": "flash_attention_2"}, "attn_implementation"),
        (M3, {"attn_implementation": "sdpa-efficient"}, "attn_implementation"),
    ],
)
def test_refuses_settings_that_the_device_lacks(device, changes, setting):
    problems = check_supported(device, Settings(**changes))
    assert [problem.setting for problem in problems] == [setting]
    with pytest.raises(DeviceError, match=setting) as caught:
        verify_supported(device, Settings(**changes))
    assert problems[0].alternative in (caught.value.hint or "")
    assert caught.value.exit_code == ExitCode.DEVICE


@pytest.mark.parametrize("device", [A10G, M3, NEW_CPU, T4])
def test_allows_four_bit_everywhere(device):
    assert check_supported(replace(device, detected=True), Settings(quantization="nf4")) == []


def test_allows_everything_on_a_planned_ampere_gpu():
    wanted = Settings(
        quantization="int8", optim="paged_adamw_8bit", attn_implementation="flash_attention_2"
    )
    assert check_supported(A10G, wanted) == []


def test_flash_attention_needs_its_package_on_this_machine():
    here = replace(A10G, detected=True)
    problems = check_supported(here, Settings(attn_implementation="flash_attention_2"))
    assert "flash-attn is not installed" in str(problems[0])


@pytest.mark.parametrize(("version", "message"), [("0.48.1", "0.48.1"), (None, "not installed")])
def test_four_bit_off_cuda_needs_a_recent_bitsandbytes(monkeypatch, version, message):
    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    (problem,) = check_supported(replace(NEW_CPU, detected=True), Settings(quantization="nf4"))
    assert message in problem.why
    assert "bitsandbytes>=0.50" in problem.alternative


@pytest.mark.parametrize(
    ("device", "requested", "is_explicit", "expected"),
    [
        (A10G, True, False, True),
        (A10G, False, True, False),
        (NEW_CPU, True, False, False),
        (NEW_CPU, True, True, True),
        (M3, True, False, False),
        (M3, False, False, False),
    ],
)
def test_compiles_where_it_pays_or_was_asked_for(device, requested, is_explicit, expected):
    choice = effective_torch_compile(device, requested, is_explicit)
    assert choice.value is expected
    assert "torch_compile" in choice.reason
