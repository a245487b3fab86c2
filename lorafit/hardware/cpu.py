"""The CPU: its name, the cores and memory this process may use, and native bfloat16."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorafit.hardware.info import DeviceInfo
from lorafit.units import KIB, format_bytes

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes a number near 2**63 for 'no limit'."""


@dataclass(frozen=True)
class CgroupLimits:
    """What the control groups of this process allow; None where nothing limits it."""

    num_cores: float | None = None
    memory_bytes: int | None = None
    used_bytes: int = 0
    """Memory in use that cannot be reclaimed, counted against `memory_bytes`."""


@dataclass(frozen=True)
class CpuReading:
    """A CPU and its memory, in bytes, before the control groups' limits."""

    name: str
    num_cores: int
    """Cores that the affinity mask allows."""
    total_bytes: int
    available_bytes: int
    has_native_bfloat16: bool
    limits: CgroupLimits = CgroupLimits()


def read_cpu(root: Path = Path("/")) -> CpuReading:
    """Return this machine's CPU, from /proc and the cgroup files under `root`, else psutil."""
    try:
        num_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity mask
        num_cores = os.cpu_count() or 1
    cpuinfo = _read(root / "proc/cpuinfo")
    meminfo = _read(root / "proc/meminfo")
    if meminfo:
        total_bytes, available_bytes = parse_meminfo(meminfo)
    else:
        import psutil

        memory = psutil.virtual_memory()
        total_bytes, available_bytes = memory.total, memory.available
    return CpuReading(
        name=parse_cpu_name(cpuinfo) or _platform_name(),
        num_cores=num_cores,
        total_bytes=total_bytes,
        available_bytes=available_bytes,
        has_native_bfloat16=parse_native_bfloat16(cpuinfo),
        limits=read_cgroup_limits(root),
    )


def _platform_name() -> str:
    import platform

    return platform.processor() or platform.machine() or "CPU"


def parse_cpu_name(cpuinfo: str) -> str | None:
    """Return the model name in /proc/cpuinfo, or None where it has none (many ARM machines)."""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return match.group(1).strip() if match else None


def parse_native_bfloat16(cpuinfo: str) -> bool:
    """Return whether the flags in /proc/cpuinfo promise bfloat16 products in hardware."""
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    present = flags.group(1).split() if flags else []
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(present)


def parse_meminfo(meminfo: str) -> tuple[int, int]:
    """Return total and available bytes of /proc/meminfo."""
    values: dict[str, str] = dict(re.findall(r"^(\w+):\s+(\d+) kB", meminfo, re.MULTILINE))
    total_bytes = int(values["MemTotal"]) * KIB
    available = values.get("MemAvailable", values.get("MemFree", "0"))
    return total_bytes, int(available) * KIB


def read_cgroup_limits(root: Path = Path("/")) -> CgroupLimits:
    """Return the tightest cgroup v1 or v2 limits on this process; a parent's limit counts too."""
    groups = root / "sys/fs/cgroup"
    cores: list[float] = []
    memory: list[tuple[int, int]] = []  # limit and use
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            for folder in _up_to(groups, path):
                cores += _v2_cores(_read(folder / "cpu.max"))
                memory += _memory_limit(folder, "memory.max", "memory.current", "inactive_file")
        if "cpu" in controllers.split(","):
            for folder in _up_to(groups / "cpu", path):
                quota = _read(folder / "cpu.cfs_quota_us")
                period = _read(folder / "cpu.cfs_period_us")
                cores += _v2_cores(f"{quota.strip()} {period.strip()}")
        if "memory" in controllers.split(","):
            for folder in _up_to(groups / "memory", path):
                memory += _memory_limit(
                    folder,
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )
    num_cores = min(cores, default=None)
    if not memory:
        return CgroupLimits(num_cores)
    limit, used = min(memory, key=lambda pair: pair[0] - pair[1])
    return CgroupLimits(num_cores, limit, used)


def _up_to(mount: Path, path: str) -> Iterator[Path]:
    """Yield the group's folder and its parents; in a container the path may not be mounted."""
    folder = mount / path.strip("/")
    while True:
        yield folder
        if folder == mount or mount not in folder.parents:
            return
        folder = folder.parent


def _v2_cores(text: str) -> list[float]:
    match = re.fullmatch(r"(\d+) (\d+)", text.strip())
    return [int(match.group(1)) / int(match.group(2))] if match and int(match.group(2)) else []


def _memory_limit(
    folder: Path, limit_file: str, usage_file: str, cache_field: str
) -> list[tuple[int, int]]:
    text = _read(folder / limit_file).strip()
    if not text.isdigit() or int(text) >= _UNLIMITED_BYTES:
        return []
    usage = _read(folder / usage_file).strip()
    cache = re.search(rf"^{cache_field} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
    # File cache is counted as used, but the kernel drops it when a process needs the memory.
    used = int(usage or 0) - (int(cache.group(1)) if cache else 0)
    return [(int(text), max(used, 0))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_device_info(reading: CpuReading) -> DeviceInfo:
    """Return the CPU as a device, with the cores and bytes that the limits leave."""
    limits = reading.limits
    usable_bytes = reading.total_bytes
    free_bytes = reading.available_bytes
    num_cores = reading.num_cores
    notes = []
    if limits.memory_bytes is not None and limits.memory_bytes < usable_bytes:
        usable_bytes = limits.memory_bytes
        free_bytes = max(min(free_bytes, usable_bytes - limits.used_bytes), 0)
        notes.append(f"a control group limits memory to {format_bytes(usable_bytes)}")
    if limits.num_cores is not None and limits.num_cores < num_cores:
        num_cores = max(1, int(limits.num_cores))
        notes.append(f"a control group limits this process to {limits.num_cores:g} cores")
    limited = f" ({'; '.join(notes)})" if notes else ""
    return DeviceInfo(
        kind="cpu",
        name=reading.name,
        catalog_key="cpu",
        usable_bytes=usable_bytes,
        free_bytes=free_bytes,
        reason=f"{reading.name}, {num_cores} cores, {format_bytes(usable_bytes)}{limited}",
        supports_bfloat16=reading.has_native_bfloat16,
        num_cpu_cores=num_cores,
    )
