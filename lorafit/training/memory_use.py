"""Memory that a run really uses, by the counter that each kind of device has."""

from typing import NamedTuple

import psutil
import torch


class MemoryUse(NamedTuple):
    """Bytes in use at their peak since the last reset."""

    allocated_bytes: int
    """CUDA: tensors; MPS: the driver's; CPU: the process (no peak counter on either)."""
    reserved_bytes: int
    """CUDA: held by the caching allocator; elsewhere the same as allocated."""


def memory_in_use(device: torch.device) -> MemoryUse:
    """Return the memory in use on `device`."""
    if device.type == "cuda":
        return MemoryUse(
            torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        )
    if device.type == "mps":
        used = torch.mps.driver_allocated_memory()
    else:
        used = int(psutil.Process().memory_info().rss)
    return MemoryUse(used, used)


def reset_peak(device: torch.device) -> None:
    """Start a new peak where the device has a counter for it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
