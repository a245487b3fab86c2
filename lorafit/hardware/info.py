"""What lorafit knows about the device it trains on, whoever found it out."""

from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

DeviceKind = Literal["cuda", "mps", "cpu"]

T = TypeVar("T")


class Choice(NamedTuple, Generic[T]):
    """A value that was chosen automatically or confirmed, and why, as a sentence to print."""

    value: T
    reason: str


@dataclass(frozen=True)
class DeviceInfo:
    """One device, as detected here or as the catalog describes it.

    `usable_bytes` is what one process can really take: below the label, because the driver,
    ECC and (on Apple) Metal's budget keep a part. `free_bytes` is None for a device that is
    not in this machine.
    """

    kind: DeviceKind
    name: str
    """The marketing name, such as `NVIDIA A10G` or `Apple M3 Pro`."""
    catalog_key: str | None
    """The catalog entry it matches, such as `a10g`; None for a device without one."""
    usable_bytes: int
    free_bytes: int | None
    reason: str
    """How it was found and why it was chosen, as one sentence to print."""
    index: int = 0
    """The torch index, such as 1 for `cuda:1`."""
    compute_capability: tuple[int, int] | None = None
    supports_bfloat16: bool = False
    num_devices: int = 1
    """How many such devices are visible to this process."""
    driver: str | None = None
    num_cpu_cores: int | None = None
    """CPU only: cores this process may use, after affinity and cgroup limits."""
    warnings: tuple[str, ...] = field(default=())
    """What is odd and does not stop the run: other processes, MIG, low free memory."""
    detected: bool = True
    """False when the device is only planned for (`--hardware NAME`)."""

    @property
    def torch_device(self) -> str:
        """The string torch takes: `cuda:0`, `mps` or `cpu`."""
        return f"cuda:{self.index}" if self.kind == "cuda" else self.kind
