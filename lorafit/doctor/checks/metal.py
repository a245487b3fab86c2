"""Apple GPUs: Metal's memory, what leaves the GPU unseen, and 16 bit."""

from lorafit.doctor.check import Outcome, check, error, ok, skip, untried, warn
from lorafit.doctor.isolated import ProofError, ProofTimeoutError
from lorafit.doctor.probe import Probe
from lorafit.units import format_bytes

_MAX_BFLOAT16_ERROR = 0.02
"""bfloat16 keeps 8 bits: a rounding is at most 2^-8 = 0.4 %, and products of many lie below."""


@check(
    "mps.memory",
    "Device",
    "Metal memory",
    affects="without a limit macOS swaps, and may freeze, when a run takes too much",
)
def metal_memory(probe: Probe) -> Outcome:
    """Check Metal's budget and the variable that lifts it."""
    device = probe.usable_device()
    if device is None or device.kind != "mps":
        return skip("no Apple GPU is used")
    measured = f"Metal may use {format_bytes(device.usable_bytes)}"
    watermark = probe.environ.get("PYTORCH_MPS_HIGH_WATERMARK_RATIO")
    if watermark is not None and watermark.strip() in ("0", "0.0"):
        return warn(
            f"{measured}, but PYTORCH_MPS_HIGH_WATERMARK_RATIO={watermark} lifts every limit",
            "unset it",
            "unset PYTORCH_MPS_HIGH_WATERMARK_RATIO",
            measured=measured,
        )
    return ok(measured, measured=measured)


@check(
    "mps.fallback",
    "Device",
    "Metal alone",
    affects="operations that run on the CPU unseen make every step many times slower",
)
def metal_fallback(probe: Probe) -> Outcome:
    """Check that torch may not move operations off the Apple GPU, and the macOS release."""
    device = probe.usable_device()
    apple = probe.sources.apple()
    if device is None or device.kind != "mps" or apple is None:
        return skip("no Apple GPU is used")
    release = "macOS {}.{}".format(*apple.macos)
    value = probe.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "").strip()
    if value in ("", "0"):
        return ok(f"{release}; operations that Metal lacks are errors, not slow", measured=release)
    return warn(
        f"PYTORCH_ENABLE_MPS_FALLBACK={value} moves what Metal lacks to the CPU unseen",
        "unset it; lorafit needs nothing that Metal lacks",
        "unset PYTORCH_ENABLE_MPS_FALLBACK",
        measured=release,
    )


@check(
    "mps.bfloat16",
    "Device",
    "Metal in 16 bit",
    affects="a run would compute in float32 unseen, with twice the memory, or with wrong numbers",
)
def metal_bfloat16(probe: Probe) -> Outcome:
    """Multiply in bfloat16 on the Apple GPU, and check that autocast really computes in it."""
    device = probe.usable_device()
    if device is None or device.kind != "mps":
        return skip("no Apple GPU is used")
    if not device.supports_bfloat16:
        return skip("this macOS has no bfloat16 in Metal: `gpu.capability` says what to do")
    try:
        answer = probe.proof("bfloat16")
    except ProofTimeoutError as late:
        return untried("not tried", "mps.bfloat16", late)
    except ProofError as failure:
        return error(
            f"Metal does not compute in bfloat16: {failure}",
            "train in float32, or install another torch",
            "lorafit train --compute-dtype float32 …",
            'pip install -U "torch"',
        )
    measured = f"relative error {answer['relative_error']:.1e}"
    if not answer["relative_error"] < _MAX_BFLOAT16_ERROR:
        return error(
            f"Metal multiplies wrongly in bfloat16: {measured}",
            "train in float32, and update macOS",
            "lorafit train --compute-dtype float32 …",
            measured=measured,
            required=f"< {_MAX_BFLOAT16_ERROR}",
        )
    if answer["autocast_dtype"] != "bfloat16":
        return warn(
            f"autocast computes in {answer['autocast_dtype']} with torch {answer['version']}",
            "install a newer torch; until then plan with float32",
            'pip install -U "torch"',
            measured=answer["autocast_dtype"],
            required="bfloat16",
        )
    return ok(f"bfloat16 multiplies, and autocast uses it: {measured}", measured=measured)
