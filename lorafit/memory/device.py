"""What an estimate asks of a device: number format, GPU, and what a process takes by itself."""

from collections.abc import Mapping
from typing import Any

from lorafit.config.schema import Settings
from lorafit.data.micro_batches import token_budget, token_multiple
from lorafit.hardware.catalog import CATALOG
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.hardware.precision import choose_compute_dtype
from lorafit.memory.gpu import GpuTraits, context_bytes
from lorafit.units import MIB, format_bytes

_CPU_PROCESS_BYTES = 455 * MIB
"""Python, PyTorch, transformers, PEFT and their code, measured on Linux x86-64 (torch 2.13) as
the resident memory of a process that trains a model of no size; bench/memory_cpu.py measures it."""
_CPU_KEPT_SHARE, _CPU_MOST_KEPT_BYTES = 1.4, 190 * MIB
"""Free memory between small blocks, which the C library reuses (`malloc.reuse_small_blocks`),
as a share of what changes in a step, and at most: fitted to bench/memory_cpu.py."""
_CPU_BYTES_PER_SIZE = 10 * MIB
"""What oneDNN keeps for every number of tokens that a micro-batch has had: 0.6 MiB for each product
of another shape, of which a step has ten to twenty. Fitted likewise."""
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


def kept_bytes(settings: Settings, device: DeviceInfo, changing_bytes: int) -> int:
    """Return what is kept beside the blocks in use where no allocator of PyTorch's caches.

    Metal gives all of it back at once, and the CPU all but small blocks. A run on rows of many
    lengths is taken to meet half of the sizes that micro-batches are rounded up to.

    Args:
        settings: of the run.
        device: where it runs.
        changing_bytes: activations, logits and gradients at the peak of a step.
    """
    if device.kind != "cpu" or settings.kernels == "stock":
        return 0
    tokens = token_budget(settings.per_device_train_batch_size, settings.max_length, "cpu").value
    sizes = tokens // (2 * token_multiple("cpu"))
    between_blocks = min(int(_CPU_KEPT_SHARE * changing_bytes), _CPU_MOST_KEPT_BYTES)
    return between_blocks + sizes * _CPU_BYTES_PER_SIZE


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
