"""Find the device to train on, and say how it was found and why the others were not taken."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from lorafit.errors import DeviceError, UsageError
from lorafit.hardware.catalog import lookup
from lorafit.hardware.cpu import CpuReading, cpu_device_info, read_cpu
from lorafit.hardware.cuda import (
    GpuReport,
    cuda_device_info,
    describe_gpus,
    load_nvml,
    own_process_id,
    read_nvml,
    read_torch_cuda,
    visible_gpus,
)
from lorafit.hardware.info import DeviceInfo
from lorafit.hardware.mps import AppleReading, mps_device_info, read_apple
from lorafit.hardware.torch_build import TorchBuild, cuda_wheel_command, read_torch_build
from lorafit.text import excerpt
from lorafit.units import format_bytes


def _read_nvml_here() -> GpuReport | None:
    nvml = load_nvml()
    return None if nvml is None else read_nvml(nvml)


@dataclass(frozen=True)
class Sources:
    """Where detection looks; the defaults are this machine, tests feed recorded answers."""

    nvml: Callable[[], GpuReport | None] = _read_nvml_here
    torch_build: Callable[[], TorchBuild | None] = read_torch_build
    torch_cuda: Callable[[], GpuReport | None] = read_torch_cuda
    apple: Callable[[], AppleReading | None] = read_apple
    cpu: Callable[[], CpuReading] = read_cpu
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


@dataclass(frozen=True)
class _Missing:
    """Why a kind of device cannot be used; `remedy` when that is worth a warning."""

    why: str
    remedy: str | None = None


def detect_device(requested: str = "auto", *, sources: Sources | None = None) -> DeviceInfo:
    """Return the device to train on: cuda before mps before cpu, or the one that was asked for.

    Args:
        requested: `auto`, `cuda`, `cuda:N`, `mps` or `cpu`.
        sources: where to look; this machine by default.

    Raises:
        UsageError: `requested` is no such name.
        DeviceError: the device that was asked for is not usable; the message lists what is.
    """
    sources = sources or Sources()
    verify_device_name(requested)
    if requested == "cpu":
        return _with_reason(cpu_device_info(sources.cpu()), "asked for with --device cpu")
    if requested == "mps":
        return _explicit(_find_mps(sources), requested)
    if requested != "auto":
        index = int(requested.partition(":")[2] or 0)
        return _explicit(_find_cuda(sources, index), requested)
    return _detect_best(sources)


def verify_device_name(requested: str) -> None:
    """Raise unless `requested` is `auto`, `cuda`, `cuda:N`, `mps` or `cpu`.

    Raises:
        UsageError: it is something else.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,4})?", requested):
        raise UsageError(
            f"{excerpt(requested)!r} is not a device",
            where="--device",
            hint="use auto, cuda, cuda:1, mps or cpu; --hardware NAME plans for a machine that is "
            "not here",
        )


def _detect_best(sources: Sources) -> DeviceInfo:
    cuda = _find_cuda(sources, 0)
    if isinstance(cuda, DeviceInfo):
        return _with_reason(cuda, "chosen because CUDA is the fastest")
    mps = _find_mps(sources)
    if isinstance(mps, DeviceInfo):
        return _with_reason(mps, f"chosen because {cuda.why}")
    cpu = cpu_device_info(sources.cpu())
    remedies = tuple(
        f"{missing.why}; to use it: {missing.remedy}" for missing in (cuda, mps) if missing.remedy
    )
    chosen = _with_reason(cpu, f"chosen because {cuda.why} and {mps.why}")
    return replace(chosen, warnings=chosen.warnings + remedies)


def _with_reason(device: DeviceInfo, why: str) -> DeviceInfo:
    return replace(device, reason=f"{device.reason}; {why}")


def _explicit(found: DeviceInfo | _Missing, requested: str) -> DeviceInfo:
    if isinstance(found, DeviceInfo):
        return _with_reason(found, f"asked for with --device {requested}")
    raise DeviceError(
        f"{requested} cannot be used: {found.why}",
        where="--device",
        hint=found.remedy or "--device auto takes the best device that is here",
    )


def _find_cuda(sources: Sources, index: int) -> DeviceInfo | _Missing:
    """Return the visible GPU `index`, or why there is none.

    A wrong CUDA_VISIBLE_DEVICES is an error even for `auto`: training quietly on the CPU of a
    machine with GPUs wastes days.
    """
    report = sources.nvml()
    build = sources.torch_build()
    if report is None and build is not None and build.cuda is not None:
        report = sources.torch_cuda()
    if report is None or not report.gpus:
        return _Missing("no NVIDIA GPU or driver was found")
    gpus = visible_gpus(report, sources.environ)
    if build is not None and build.cuda is None:
        return _Missing(
            f"{describe_gpus(gpus[:1])[3:]} is here, but torch {build.version} was built without "
            "CUDA",
            cuda_wheel_command(build, report.driver),
        )
    if index >= len(gpus):
        where = "visible to this process" if "CUDA_VISIBLE_DEVICES" in sources.environ else "here"
        return _Missing(
            f"there is no GPU {index}; {where}: {describe_gpus(gpus)}",
            "use --device cuda:0, and see CUDA_VISIBLE_DEVICES",
        )
    return cuda_device_info(report, gpus, index, sources.environ, own_process_id())


def _find_mps(sources: Sources) -> DeviceInfo | _Missing:
    reading = sources.apple()
    if reading is None:
        return _Missing("this is not a Mac with Apple silicon")
    if reading.obstacle is not None:
        return _Missing(
            f"{reading.chip} is here, but {reading.obstacle}",
            "install an arm64 Python from python.org, then pip install --force-reinstall torch",
        )
    return mps_device_info(reading)


def planned_device(hardware: str, *, sources: Sources | None = None) -> DeviceInfo:
    """Return the device that `--hardware NAME` plans for, which need not be in this machine.

    `auto` detects; `cpu` is this machine's own CPU; everything else comes from the catalog.

    Raises:
        UsageError: no such name in the catalog.
    """
    name = hardware.strip().lower()
    if name == "auto":
        return detect_device("auto", sources=sources)
    if name == "cpu":
        here = cpu_device_info((sources or Sources()).cpu())
        return replace(
            here, detected=False, reason=f"{here.reason}; planned for with --hardware cpu"
        )
    entry = lookup(hardware)
    return DeviceInfo(
        kind=entry.kind,
        name=entry.name,
        catalog_key=entry.key,
        usable_bytes=entry.usable_bytes,
        free_bytes=None,
        reason=f"{entry.name} of the catalog, {format_bytes(entry.usable_bytes)} usable "
        f"({entry.notes}); planned for with --hardware {entry.key}",
        compute_capability=entry.compute_capability,
        supports_bfloat16=entry.supports_bfloat16,
        detected=False,
    )
