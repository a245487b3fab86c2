"""Apple silicon: the chip through sysctl, the Metal budget through torch."""

import platform
import re
import subprocess
import sys
from dataclasses import dataclass

from lorafit.hardware.catalog import match_name, metal_budget_bytes
from lorafit.hardware.info import DeviceInfo
from lorafit.units import format_bytes

_SYSCTL_NAMES = ("machdep.cpu.brand_string", "hw.memsize", "hw.ncpu", "kern.osproductversion")

MIN_MACOS_FOR_BFLOAT16 = (14, 0)
"""torch raises `MPS BFloat16 is only supported on MacOS 14 or newer` before."""


@dataclass(frozen=True)
class AppleReading:
    """A Mac with Apple silicon; memory in bytes."""

    chip: str
    """Such as `Apple M3 Pro`."""
    ram_bytes: int
    macos: tuple[int, int]
    available_bytes: int
    budget_bytes: int | None
    """torch.mps.recommended_max_memory(); None when torch cannot use Metal here."""
    obstacle: str | None = None
    """Why torch cannot use Metal."""


def parse_sysctl(text: str) -> dict[str, str]:
    """Return the `name: value` lines of sysctl's output; unknown names are simply absent."""
    return dict(re.findall(r"^([\w.]+): (.*)$", text, re.MULTILINE))


def parse_apple(values: dict[str, str]) -> tuple[str, int, tuple[int, int]] | None:
    """Return chip, RAM in bytes and macOS release of sysctl's values; None for an Intel Mac."""
    chip = values.get("machdep.cpu.brand_string", "")
    if not chip.startswith("Apple ") or not values.get("hw.memsize", "").isdigit():
        return None
    release = [int(part) for part in re.findall(r"\d+", values.get("kern.osproductversion", ""))]
    major, minor = ([*release, 0, 0])[:2]
    return chip, int(values["hw.memsize"]), (major, minor)


def read_apple() -> AppleReading | None:
    """Return this Mac, or None anywhere else. Imports torch on a Mac only."""
    if sys.platform != "darwin" or platform.machine() not in ("arm64", "x86_64"):
        return None
    result = subprocess.run(
        ["sysctl", *_SYSCTL_NAMES], capture_output=True, text=True, timeout=5, check=False
    )
    found = parse_apple(parse_sysctl(result.stdout))
    if found is None:
        return None
    chip, ram_bytes, macos = found
    import psutil

    budget_bytes, obstacle = _torch_budget()
    return AppleReading(
        chip, ram_bytes, macos, psutil.virtual_memory().available, budget_bytes, obstacle
    )


def _torch_budget() -> tuple[int | None, str | None]:
    if platform.machine() != "arm64":
        return None, "Python runs under Rosetta (x86_64); Metal needs an arm64 Python"
    try:
        import torch
    except ImportError:
        return None, "torch is not installed"
    if not torch.backends.mps.is_built():
        return None, "this torch was built without Metal"
    if not torch.backends.mps.is_available():
        return None, "torch finds no Metal device (macOS too old, or no access to the GPU)"
    return int(torch.mps.recommended_max_memory()), None


def mps_device_info(reading: AppleReading) -> DeviceInfo:
    """Return the Apple GPU as a device; its memory is what Metal grants of the shared RAM."""
    budget_bytes = reading.budget_bytes or metal_budget_bytes(reading.ram_bytes)
    share = round(100 * budget_bytes / reading.ram_bytes)
    supports_bfloat16 = reading.macos >= MIN_MACOS_FOR_BFLOAT16
    warnings = []
    if reading.available_bytes < 0.8 * budget_bytes:
        warnings.append(
            f"only {format_bytes(reading.available_bytes)} of RAM is free: close other "
            "applications, or macOS swaps and training crawls"
        )
    if not supports_bfloat16:
        warnings.append(f"macOS {reading.macos[0]} has no bfloat16 in Metal: 14 or later has")
    return DeviceInfo(
        kind="mps",
        name=reading.chip,
        catalog_key=match_name(reading.chip, reading.ram_bytes),
        usable_bytes=budget_bytes,
        free_bytes=min(budget_bytes, reading.available_bytes),
        reason=f"{reading.chip} found through sysctl; Metal may use {format_bytes(budget_bytes)}, "
        f"{share} % of {format_bytes(reading.ram_bytes)} RAM",
        supports_bfloat16=supports_bfloat16,
        warnings=tuple(warnings),
    )
