"""The number format of weights and matrix products: what a device can do and a model bears."""

from lorafit.errors import DeviceError
from lorafit.hardware.info import Choice, DeviceInfo

FLOAT16_UNSAFE: dict[str, str] = {
    "phi": "Phi-2's attention scores exceed float16's largest number, 65504",
    "gemma2": "Gemma's activations exceed float16's largest number, 65504",
    "gemma3": "Gemma 3's activations exceed float16's largest number, 65504",
    "gemma3_text": "Gemma 3's activations exceed float16's largest number, 65504",
}
"""Model types that give non-finite numbers in float16, and why."""

_SIXTEEN_BIT = frozenset({"bfloat16", "float16"})


def choose_compute_dtype(
    device: DeviceInfo,
    requested: str,
    model_type: str,
    stored_dtype: str | None = None,
    *,
    as_asked: bool = False,
) -> Choice[str]:
    """Return `bfloat16`, `float16` or `float32`, and why.

    Args:
        device: where the model will run.
        requested: the `compute_dtype` setting; `auto` chooses.
        model_type: `config.json`'s `model_type`, such as `phi`.
        stored_dtype: the number format of the weights on disk, if known.
        as_asked: follow a request that lorafit would not train with, and say why it would not:
            what somebody else's script takes can be told all the same.

    Raises:
        DeviceError: the request would fail on this device or give non-finite numbers.
    """
    if requested != "auto":
        try:
            return _verify_request(device, requested, model_type)
        except DeviceError as problem:
            if not as_asked:
                raise
            return Choice(requested, f"as asked for, though {problem}")
    if device.kind == "cpu":
        return _choose_for_cpu(device, stored_dtype)
    if device.supports_bfloat16:
        return Choice("bfloat16", f"{device.name} multiplies bfloat16 in hardware")
    unsafe = FLOAT16_UNSAFE.get(model_type)
    if unsafe:
        return Choice("float32", f"{device.name} lacks bfloat16, and float16 is out: {unsafe}")
    return Choice("float16", f"{device.name} lacks bfloat16; float16 is its fastest format")


def _choose_for_cpu(device: DeviceInfo, stored_dtype: str | None) -> Choice[str]:
    if stored_dtype in _SIXTEEN_BIT and device.supports_bfloat16:
        return Choice("bfloat16", f"weights are stored in {stored_dtype}, this CPU has bfloat16")
    if device.supports_bfloat16:
        return Choice("float32", f"weights are stored in {stored_dtype or 'float32'}")
    return Choice("float32", "this CPU has no bfloat16 instructions, emulating them is slower")


def _verify_request(device: DeviceInfo, requested: str, model_type: str) -> Choice[str]:
    asked = f"asked for with compute_dtype {requested}"
    if requested == "float16" and model_type in FLOAT16_UNSAFE:
        alternative = "bfloat16" if device.supports_bfloat16 else "float32"
        raise DeviceError(
            f"float16 does not work for model type {model_type}: {FLOAT16_UNSAFE[model_type]}, "
            "so the loss would not be finite",
            where="compute_dtype",
            hint=f"use --compute-dtype {alternative}, or auto",
        )
    if requested == "bfloat16" and not device.supports_bfloat16 and device.kind != "cpu":
        alternative = "float32" if model_type in FLOAT16_UNSAFE else "float16"
        why = (
            "needs macOS 14 or later on Apple GPUs"
            if device.kind == "mps"
            else "needs compute capability 8.0 or later (Ampere)"
        )
        raise DeviceError(
            f"{device.name} cannot compute in bfloat16, which {why}",
            where="compute_dtype",
            hint=f"use --compute-dtype {alternative}, or auto",
        )
    if device.kind == "cpu" and requested == "bfloat16" and not device.supports_bfloat16:
        return Choice(requested, f"{asked}; this CPU emulates it, float32 is likely faster")
    return Choice(requested, asked)
