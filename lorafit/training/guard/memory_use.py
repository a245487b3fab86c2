"""Memory that a run really uses, by the counter that each kind of device has."""

import threading
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil
import torch

from lorafit.hardware.cuda import load_nvml, own_process_id, read_nvml
from lorafit.memory.calibration import PeakBytes


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


class MemoryProbe(Protocol):
    """Measures the true peak of a stretch of work, as closely as the device allows."""

    def start(self) -> None:
        """Begin a peak; what was taken before and is still held counts."""

    def stop(self) -> PeakBytes:
        """Return the peak since `start`; None for what the device cannot tell."""

    def release(self) -> None:
        """Give memory that is free again back to the device, and begin a new peak."""


class CudaProbe:
    """Counters of PyTorch's allocator, and what the driver says that this process holds.

    The counters are not reset at the start: the peak of loading the model counts, as it does in
    an estimate.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        """Wait for what was started before."""
        torch.cuda.synchronize(self._device)

    def stop(self) -> PeakBytes:
        """Return the peak since the process began."""
        torch.cuda.synchronize(self._device)
        peak = memory_in_use(self._device)
        process = self._process_bytes()
        if process is not None:
            # The context stays as it is; what the allocator holds may have been more before.
            process += peak.reserved_bytes - torch.cuda.memory_reserved(self._device)
        return PeakBytes(peak.allocated_bytes, peak.reserved_bytes, process)

    def release(self) -> None:
        """Give cached segments back and reset the counters."""
        torch.cuda.empty_cache()
        reset_peak(self._device)

    def _process_bytes(self) -> int | None:
        """Return what NVML says of this process; None in a container, where ids differ."""
        nvml = load_nvml()
        report = read_nvml(nvml) if nvml is not None else None
        if report is None:
            return None
        uuid = str(torch.cuda.get_device_properties(self._device).uuid)
        own = [
            used
            for gpu in report.gpus
            if uuid in gpu.uuid
            for pid, used in gpu.processes
            if pid == own_process_id()
        ]
        return own[0] if own else None


class ProcessProbe:
    """The resident memory of this process, for devices whose memory is the system's.

    Linux keeps a peak that can be reset; elsewhere memory is sampled while the work goes on.
    """

    _INTERVAL_SECONDS = 0.01

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = 0
        self._done = threading.Event()
        self._sampler: threading.Thread | None = None

    def start(self) -> None:
        """Begin a peak."""
        self._peak = 0
        if not _reset_peak_resident():
            self._done.clear()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()

    def stop(self) -> PeakBytes:
        """Return the peak of the process; what of it are tensors is not known."""
        if self._sampler is not None:
            self._done.set()
            self._sampler.join()
            self._sampler = None
            return PeakBytes(None, None, self._peak)
        return PeakBytes(None, None, _peak_resident())

    def release(self) -> None:
        """Do nothing: memory that is free again goes back by itself."""

    def _sample(self) -> None:
        while True:
            self._peak = max(self._peak, int(self._process.memory_info().rss))
            if self._done.wait(self._INTERVAL_SECONDS):
                return


def _reset_peak_resident() -> bool:
    """Reset Linux's peak of resident memory (proc(5), clear_refs); False where it cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_resident() -> int:
    """Return Linux's peak of resident memory in bytes (proc(5), VmHWM)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def memory_probe(device: torch.device) -> MemoryProbe:
    """Return what measures the peak on a device."""
    return CudaProbe(device) if device.type == "cuda" else ProcessProbe()
