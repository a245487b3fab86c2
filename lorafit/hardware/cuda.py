"""NVIDIA GPUs: what NVML says about them without starting CUDA, else what torch says."""

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lorafit.errors import DeviceError
from lorafit.hardware.catalog import has_native_bfloat16, match_name
from lorafit.hardware.gpu_state import (
    GpuState,
    attempt,
    read_gpu_state,
    read_separate_pairs,
)
from lorafit.hardware.info import DeviceInfo
from lorafit.hardware.visible import VARIABLE, visible_indexes
from lorafit.text import excerpt
from lorafit.units import format_bytes

_LOW_FREE_FRACTION = 0.9
"""Below this share of free memory the rest is worth a warning: plans assume an idle GPU."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one MIG slice of it, as NVML or torch describes it; bytes throughout."""

    name: str
    total_bytes: int
    reserved_bytes: int
    """What the driver keeps; CUDA's total is `total_bytes` less this."""
    free_bytes: int
    uuid: str = ""
    capability: tuple[int, int] | None = None
    processes: tuple[tuple[int, int | None], ...] = ()
    """Process id and bytes (None when the driver does not tell) of every compute process."""
    mig_enabled: bool = False
    slices: tuple["Gpu", ...] = ()
    """MIG slices, when MIG is on."""
    num_ecc_errors: int = 0
    """Uncorrected memory errors since the driver was loaded."""
    state: GpuState = field(default_factory=GpuState)
    """Temperature and slowdowns when it was asked."""

    @property
    def usable_bytes(self) -> int:
        """Bytes that CUDA offers."""
        return self.total_bytes - self.reserved_bytes


@dataclass(frozen=True)
class GpuReport:
    """All GPUs of the machine (NVML), or all that torch shows, and the driver's version."""

    gpus: tuple[Gpu, ...]
    source: str
    """`NVML` or `torch.cuda`."""
    driver: str | None = None
    is_filtered: bool = False
    """True when CUDA_VISIBLE_DEVICES has been applied already, as torch does."""
    separate_pairs: tuple[tuple[int, int], ...] = ()
    """Indexes of the pairs of GPUs that cannot write to each other's memory."""


def load_nvml() -> Any | None:
    """Return the pynvml module, or None when it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def read_nvml(nvml: Any) -> GpuReport | None:
    """Return what NVML knows, or None where there is no driver. Never raises for a bad driver.

    `nvml` is the pynvml module, or an object with the same functions.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        handles = [
            nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
        ]
        gpus = tuple(_read_gpu(nvml, handle) for handle in handles)
        driver = attempt(nvml, lambda: _text(nvml.nvmlSystemGetDriverVersion()), "")
        pairs = read_separate_pairs(nvml, handles)
        return GpuReport(gpus, "NVML", driver=driver or None, separate_pairs=pairs)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _read_gpu(nvml: Any, handle: Any, parent_capability: tuple[int, int] | None = None) -> Gpu:
    memory = _read_memory(nvml, handle)
    capability = parent_capability or attempt(
        nvml, lambda: tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle)), None
    )
    mig_enabled = parent_capability is None and bool(
        attempt(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0], 0)
    )
    running = attempt(nvml, lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle), [])
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=attempt(nvml, lambda: _text(nvml.nvmlDeviceGetUUID(handle)), ""),
        total_bytes=int(memory.total),
        reserved_bytes=int(getattr(memory, "reserved", 0)),
        free_bytes=int(memory.free),
        capability=capability,
        processes=tuple((process.pid, process.usedGpuMemory) for process in running),
        mig_enabled=mig_enabled,
        slices=_read_slices(nvml, handle, capability) if mig_enabled else (),
        num_ecc_errors=attempt(
            nvml,
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            0,
        ),
        state=read_gpu_state(nvml, handle),
    )


def _read_memory(nvml: Any, handle: Any) -> Any:
    # Version 2 tells apart what the driver reserves; drivers before R510 only know version 1.
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetMemoryInfo(handle)


def _read_slices(nvml: Any, handle: Any, capability: tuple[int, int] | None) -> tuple[Gpu, ...]:
    slices = []
    for index in range(attempt(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle), 0)):
        part = attempt(nvml, partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index))
        if part is not None:
            slices.append(_read_gpu(nvml, part, capability or (8, 0)))
    return tuple(slices)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def read_torch_cuda() -> GpuReport | None:
    """Return what torch.cuda knows; for machines where NVML is missing. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return None
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free_bytes, total_bytes = torch.cuda.mem_get_info(index)
        gpus.append(
            Gpu(
                name=properties.name,
                total_bytes=total_bytes,
                reserved_bytes=0,
                free_bytes=free_bytes,
                capability=(properties.major, properties.minor),
            )
        )
    return GpuReport(tuple(gpus), "torch.cuda", is_filtered=True)


def visible_gpus(report: GpuReport, environ: Mapping[str, str]) -> list[Gpu]:
    """Return the GPUs that this process may use, in CUDA's order.

    Raises:
        DeviceError: CUDA_VISIBLE_DEVICES is empty or wrong; the message lists the GPUs there are.
    """
    if report.is_filtered:
        return list(report.gpus)
    value = environ.get(VARIABLE)
    names = [[gpu.uuid, *(part.uuid for part in gpu.slices)] for gpu in report.gpus]
    try:
        chosen = visible_indexes(value, names)
    except DeviceError as problem:
        raise DeviceError(
            f"{problem.message}; this machine has {describe_gpus(report.gpus)}",
            where=problem.where,
            hint=problem.hint,
        ) from None
    entries = [part.strip() for part in value.split(",")] if value else []
    return [
        _slice_or_gpu(report.gpus[index], entries[position] if entries else "")
        for position, index in enumerate(chosen)
    ]


def _slice_or_gpu(gpu: Gpu, entry: str) -> Gpu:
    """Return the MIG slice that `entry` names; with MIG on, CUDA never shows the whole GPU."""
    if not gpu.slices:
        return gpu
    named = [
        part
        for part in gpu.slices
        if entry.upper().startswith("MIG-") and part.uuid.upper().startswith(entry.upper())
    ]
    return (named or list(gpu.slices))[0]


def describe_gpus(gpus: tuple[Gpu, ...] | list[Gpu]) -> str:
    """Return a list for messages: `0: Tesla T4 (14.6 GiB), 1: Tesla T4 (14.6 GiB)`."""
    if not gpus:
        return "no NVIDIA GPU"
    return ", ".join(
        f"{index}: {excerpt(gpu.name, 60)} ({format_bytes(gpu.usable_bytes)})"
        for index, gpu in enumerate(gpus)
    )


def cuda_device_info(
    report: GpuReport, gpus: list[Gpu], index: int, environ: Mapping[str, str], own_pid: int
) -> DeviceInfo:
    """Return the device for the visible GPU `index`, with everything odd about it as warnings."""
    gpu = gpus[index]
    count = f", one of {len(gpus)} visible GPUs" if len(gpus) > 1 else ""
    return DeviceInfo(
        kind="cuda",
        name=gpu.name,
        catalog_key=match_name(gpu.name, gpu.total_bytes),
        usable_bytes=gpu.usable_bytes,
        free_bytes=gpu.free_bytes,
        reason=f"{gpu.name} found through {report.source}{count}",
        index=index,
        compute_capability=gpu.capability,
        supports_bfloat16=gpu.capability is not None and has_native_bfloat16(gpu.capability),
        num_devices=len(gpus),
        driver=report.driver,
        warnings=tuple(_oddities(gpu, gpus, environ, own_pid)),
    )


def _oddities(gpu: Gpu, gpus: list[Gpu], environ: Mapping[str, str], own_pid: int) -> list[str]:
    found = []
    others = [process for process in gpu.processes if process[0] != own_pid]
    if others:
        listed = ", ".join(
            f"{pid} ({format_bytes(used)})" if used is not None else f"{pid} (size unknown)"
            for pid, used in others[:4]
        )
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        found.append(f"other processes use this GPU: {listed}{more}")
    elif gpu.free_bytes < _LOW_FREE_FRACTION * gpu.usable_bytes:
        taken = format_bytes(gpu.usable_bytes - gpu.free_bytes)
        found.append(f"{taken} of this GPU is taken by processes outside this container or user")
    if "MIG" in gpu.name:
        found.append("this is a MIG slice of a GPU: it has a part of the memory and of the speed")
    if gpu.mig_enabled and not gpu.slices:
        found.append("MIG is on but no slice exists: CUDA cannot use this GPU")
    if gpu.num_ecc_errors:
        found.append(f"{gpu.num_ecc_errors} uncorrected memory (ECC) errors: results may be wrong")
    if len({other.name for other in gpus}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        found.append(
            "the visible GPUs differ, and CUDA counts the fastest first: "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID to count as nvidia-smi does"
        )
    return found


def own_process_id() -> int:
    """Return this process's id, which NVML lists among a GPU's processes once CUDA is started."""
    return os.getpid()
