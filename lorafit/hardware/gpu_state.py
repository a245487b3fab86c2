"""How warm a GPU is, what slows it down, and which GPUs reach each other; by NVML, read only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeVar

T = TypeVar("T")

_SLOWDOWNS = {
    0x08: "the hardware (heat, or too little power)",
    0x20: "the driver, for heat",
    0x40: "the hardware, for heat",
    0x80: "the power supply",
}
"""Bits of `nvmlDeviceGetCurrentClocksThrottleReasons` that mean trouble (nvml.h). The rest is
idleness, the power limit, which a busy GPU runs into as it should, and clocks set by hand."""

_NEAR_LIMIT_CELSIUS = 5


@dataclass(frozen=True)
class GpuState:
    """What NVML says of a GPU's temperature and clocks at this moment."""

    celsius: int | None = None
    """Temperature of the chip; None where it is not told (as for a MIG slice)."""
    slowdown_celsius: int | None = None
    """Temperature at which the GPU slows itself down; None where it is not told."""
    slowed_by: tuple[str, ...] = ()
    """What slows it down now; empty for nothing."""

    @property
    def is_near_slowdown(self) -> bool:
        """Whether it is within 5 degrees of slowing itself down."""
        if self.celsius is None or self.slowdown_celsius is None:
            return False
        return self.celsius > self.slowdown_celsius - _NEAR_LIMIT_CELSIUS

    @property
    def temperature(self) -> str:
        """The temperature in words: `61 °C, slows down at 90 °C`."""
        if self.celsius is None:
            return "temperature unknown"
        if self.slowdown_celsius is None:
            return f"{self.celsius} °C"
        return f"{self.celsius} °C, slows down at {self.slowdown_celsius} °C"


def read_gpu_state(nvml: Any, handle: Any) -> GpuState:
    """Return temperature and slowdowns; what this GPU or driver does not tell stays None.

    Args:
        nvml: the pynvml module, or an object with the same functions.
        handle: the GPU, as NVML knows it.
    """
    celsius = attempt(
        nvml, lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    )
    slowdown = attempt(
        nvml,
        lambda: int(
            nvml.nvmlDeviceGetTemperatureThreshold(handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
        ),
    )
    # Named "event reasons" since driver 535, which still answers to the older name.
    bits = attempt(nvml, lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)), 0)
    slowed_by = tuple(reason for bit, reason in _SLOWDOWNS.items() if bits & bit)
    return GpuState(celsius, slowdown, slowed_by)


def read_separate_pairs(nvml: Any, handles: Sequence[Any]) -> tuple[tuple[int, int], ...]:
    """Return the pairs of GPUs, by their indexes, that cannot write to each other's memory.

    A pair of which NVML tells nothing (an old driver, MIG) is left out.
    """
    return tuple(
        (left, right)
        for left, right in combinations(range(len(handles)), 2)
        if _is_separate(nvml, handles[left], handles[right])
    )


def _is_separate(nvml: Any, left: Any, right: Any) -> bool:
    status = attempt(
        nvml, lambda: nvml.nvmlDeviceGetP2PStatus(left, right, nvml.NVML_P2P_CAPS_INDEX_WRITE)
    )
    return status not in (None, nvml.NVML_P2P_STATUS_OK, nvml.NVML_P2P_STATUS_UNKNOWN)


def attempt(nvml: Any, call: Callable[[], T], default: Any = None) -> Any:
    """Return the answer, or `default` when this GPU or driver does not support the question."""
    try:
        return call()
    except nvml.NVMLError:
        return default
