"""What an estimate asks of a device: number format, GPU, and what a process takes by itself."""

from collections.abc import Mapping
from typing import Any

from lorafit.config.schema import Settings
from lorafit.hardware.catalog import CATALOG
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.hardware.precision import choose_compute_dtype
from lorafit.memory.gpu import GpuTraits, context_bytes
from lorafit.units import MIB, format_bytes

_CPU_PROCESS_BYTES = 455 * MIB
"""Python, PyTorch, transformers, PEFT and their code, measured on Linux x86-64 (torch 2.13) as
the resident memory of a process that trains a model of no size; bench/memory_cpu.py measures it."""
_CPU_KEPT_BYTES = 72 * MIB
"""What lies free between small blocks in use, where training has the C library reuse them (see
`malloc.reuse_small_blocks`): fitted to bench/memory_cpu.py."""
_MPS_PROCESS_BYTES = 300 * MIB
"""What Metal keeps beside PyTorch's tensors: kernels, command buffers. A guess: never measured."""
_DEFAULT_MULTIPROCESSORS = 80


def compute_dtype(
    settings: Settings, model_config: Mapping[str, Any], device: DeviceInfo
) -> Choice[str]:
    """Return the number format that training computes in, such as `bfloat16`, and why.

    With stock kernels the question may be about a script that lorafit would not run.

    Raises:
        DeviceError: the device cannot compute in the number format that was asked for.
    """
    return choose_compute_dtype(
        device,
        settings.compute_dtype,
        str(model_config.get("model_type", "")),
        model_config.get("dtype") or model_config.get("torch_dtype"),
        as_asked=settings.kernels == "stock",
    )


def gpu_traits(device: DeviceInfo) -> GpuTraits | None:
    """Return the facts about an NVIDIA GPU that memory depends on; None for other devices."""
    if device.kind != "cuda":
        return None
    entry = CATALOG.get(device.catalog_key or "")
    num_sms = entry.num_multiprocessors if entry is not None else _DEFAULT_MULTIPROCESSORS
    return GpuTraits(device.compute_capability or (8, 0), num_sms)


def process_context_bytes(device: DeviceInfo) -> tuple[int, str]:
    """Return what a process takes beside its tensors, and where the figure comes from."""
    gpu = gpu_traits(device)
    if gpu is not None:
        return context_bytes(gpu, device.catalog_key)
    context = _CPU_PROCESS_BYTES if device.kind == "cpu" else _MPS_PROCESS_BYTES
    return context, f"about {format_bytes(context)} for Python, PyTorch and the model's code"


def kept_bytes(settings: Settings, device: DeviceInfo, allocated_bytes: int) -> int:
    """Return what is kept beside the blocks in use where no allocator of PyTorch's caches.

    Metal gives all of it back at once, and the CPU all but small blocks.
    """
    if device.kind != "cpu" or settings.kernels == "stock":
        return 0
    return min(_CPU_KEPT_BYTES, allocated_bytes)


def hardware_facts(device: DeviceInfo) -> dict[str, Any]:
    """Return the device as the JSON document has it."""
    return {
        "name": device.name,
        "key": device.catalog_key,
        "kind": device.kind,
        "compute_capability": list(device.compute_capability or ()) or None,
        "usable_bytes": device.usable_bytes,
        "detected": device.detected,
    }
