"""The device to train on: found, working, fit for 16 bit, and with memory to spare."""

from lorafit.doctor.check import Outcome, check, error, ok, skip, untried, warn
from lorafit.doctor.isolated import ProofError, ProofTimeoutError
from lorafit.doctor.probe import Probe
from lorafit.errors import LorafitError
from lorafit.hardware.torch_build import cuda_wheel_command, driver_branch
from lorafit.units import GIB, format_bytes

_DRIVER_FOR_CUDA = {"12": 525, "13": 580}
"""First driver branch for each major release of CUDA (CUDA's compatibility guide)."""
_MAX_MATMUL_ERROR = 0.01
_MIN_GPU_BYTES = 6 * GIB
"""Phi-2 takes 5.2 GiB in 16 bit and 1.7 GiB in 4 bit, before activations."""


@check(
    "device",
    "Device",
    "Device",
    affects="this is where training runs, with the memory and speed that are left there",
)
def device_found(probe: Probe) -> Outcome:
    """Detect the device, and say how and why."""
    try:
        device = probe.device()
    except LorafitError as problem:
        return error(str(problem), problem.hint or "choose another --device")
    detail = f"{device.torch_device}: {device.reason}"
    if device.warnings:
        return warn(
            f"{detail}; {'; '.join(device.warnings)}",
            "see the notes; training works, perhaps with less memory or speed",
            measured=device.name,
        )
    return ok(detail, measured=device.name)


@check(
    "device.init",
    "Device",
    "Device multiplies",
    affects="training stops or gives wrong numbers on a device that cannot multiply",
)
def device_multiplies(probe: Probe) -> Outcome:
    """Start a GPU and compare a product with the CPU's, in a process of its own."""
    device = probe.usable_device()
    if device is None:
        return skip("no device can be used")
    if device.kind == "cpu":
        return skip("no GPU is used; `4-bit` multiplies on the CPU")
    try:
        answer = probe.proof("matmul")
    except ProofTimeoutError as late:
        return warn(
            f"{device.torch_device} was not proved to work: {late}",
            "the machine may be busy, or the driver hangs: try this check alone, with time",
            "lorafit doctor --check device.init --timeout 60",
        )
    except ProofError as failure:
        return error(
            f"{device.torch_device} does not start: {failure}",
            "restart the machine or container; if it stays, reinstall the driver and torch",
            "nvidia-smi" if device.kind == "cuda" else "pip install --force-reinstall torch",
        )
    measured = f"relative error {answer['relative_error']:.1e}"
    if not answer["relative_error"] < _MAX_MATMUL_ERROR:
        return error(
            f"{device.torch_device} multiplies wrongly: {measured}",
            "do not train on this device: memory or driver is faulty",
            measured=measured,
        )
    return ok(measured, measured=measured)


@check(
    "gpu.driver",
    "Device",
    "NVIDIA driver",
    affects="torch cannot start CUDA on a driver older than the CUDA it was built for",
    docs_url="https://www.nvidia.com/drivers",
)
def nvidia_driver(probe: Probe) -> Outcome:
    """Compare the driver with the CUDA release that torch was built for."""
    report = probe.nvidia()
    if report is None:
        return skip("no NVIDIA GPU here")
    build = probe.sources.torch_build()
    branch = driver_branch(report.driver)
    required = _DRIVER_FOR_CUDA.get(build.cuda.split(".")[0]) if build and build.cuda else None
    if required is None:
        return ok(f"driver {report.driver}", measured=report.driver)
    if branch < required:
        assert build is not None
        has_older = branch >= min(_DRIVER_FOR_CUDA.values())
        return error(
            f"driver {report.driver} is too old for torch's CUDA {build.cuda}",
            f"install driver {required} or later"
            + (", or a torch for the CUDA that this driver runs" if has_older else ""),
            *([cuda_wheel_command(build, report.driver)] if has_older else []),
            measured=report.driver,
            required=f">= {required}",
        )
    return ok(f"driver {report.driver}", measured=report.driver, required=f">= {required}")


@check(
    "gpu.capability",
    "Device",
    "bfloat16",
    affects="without bfloat16 Phi-2 has to train in float32: twice the memory, far slower",
)
def bfloat16_support(probe: Probe) -> Outcome:
    """Check for bfloat16 in hardware."""
    device = probe.usable_device()
    if device is None:
        return skip("no device can be used")
    if device.compute_capability:
        name = "{} (capability {}.{})".format(device.name, *device.compute_capability)
    else:
        name = device.name
    if device.supports_bfloat16:
        return ok(f"{name} computes in bfloat16", measured="yes")
    if device.kind == "cpu":
        return ok(f"{name} has no bfloat16 instructions: float32 is used", measured="no")
    return warn(
        f"{name} has no bfloat16",
        "quantize the base model, or train a model that bears float16",
        "lorafit train --preset memory-limited --quantization nf4 --data FILE",
        measured="no",
        required="compute capability 8.0" if device.kind == "cuda" else "macOS 14",
    )


@check(
    "gpu.memory",
    "Device",
    "GPU memory",
    affects="a plan counts on an idle GPU; the run stops when memory runs out",
)
def gpu_memory(probe: Probe) -> Outcome:
    """Check total and free memory of the GPU, and who else uses it."""
    device = probe.usable_device()
    if device is None or device.kind != "cuda" or device.free_bytes is None:
        return skip("no NVIDIA GPU here")
    measured = f"{format_bytes(device.free_bytes)} free of {format_bytes(device.usable_bytes)}"
    if device.usable_bytes < _MIN_GPU_BYTES:
        return warn(
            f"{measured}: little for Phi-2, which takes 5.2 GiB in 16 bit",
            "use 4-bit weights",
            "lorafit train --preset memory-limited --quantization nf4 --data FILE",
            measured=measured,
            required=format_bytes(_MIN_GPU_BYTES),
        )
    if device.free_bytes < 0.9 * device.usable_bytes:
        return warn(
            f"{measured}: other processes use this GPU",
            "stop them, or choose another GPU",
            "nvidia-smi",
            measured=measured,
            required="90 % free",
        )
    return ok(measured, measured=measured)


@check(
    "determinism",
    "Device",
    "Same numbers twice",
    affects="a resumed run can only equal an unbroken one where equal work gives equal numbers",
)
def same_numbers_twice(probe: Probe) -> Outcome:
    """Take one gradient twice on the device, in a process of its own, and compare every bit."""
    device = probe.usable_device()
    if device is None:
        return skip("no device can be used")
    try:
        answer = probe.proof("repeat")
    except ProofTimeoutError as late:
        return untried("not tried", "determinism", late)
    except ProofError as failure:
        return warn(
            f"{device.torch_device} takes no gradient of attention: {failure}",
            "try the plain attention operator",
            "lorafit train --attn-implementation eager …",
        )
    measured = f"{answer['different']} of {answer['of']} numbers differ"
    if not answer["different"]:
        return ok(f"one gradient, taken twice: {measured}", measured=measured)
    return warn(
        f"one gradient, taken twice: {measured}",
        "fix cuBLAS's workspace; sums in attention's backward may still be taken in any order",
        "export CUBLAS_WORKSPACE_CONFIG=:4096:8",
        measured=measured,
        required="0",
    )
