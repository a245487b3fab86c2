"""Known devices: what one process can take of their memory, and how fast they are.

One entry a device. `usable_bytes` is what CUDA or Metal offers, not what the label says: NVML's
total less the part that the driver reserves (CUDA), or `recommendedMaxWorkingSetSize` (Metal).
Speeds are the vendors' dense figures with float32 sums, which is what training uses.
"""

import re
from dataclasses import dataclass
from typing import Literal

from lorafit.errors import UsageError
from lorafit.hardware.info import DeviceKind
from lorafit.text import excerpt, nearest
from lorafit.units import GIB, MIB

Evidence = Literal["published", "derived"]
"""`published`: read from output that owners posted. `derived`: computed as `notes` says."""


@dataclass(frozen=True)
class CatalogEntry:
    """One device model. Memory in bytes, bandwidth in bytes a second, arithmetic in FLOP/s."""

    key: str
    name: str
    kind: DeviceKind
    label_bytes: int
    """Memory by the label: 24 GiB for an A10G, all of the RAM for a Mac."""
    usable_bytes: int
    """Memory that one process can really take."""
    compute_capability: tuple[int, int] | None
    supports_bfloat16: bool
    memory_bandwidth_bytes_per_second: float
    peak_matmul_flops: float
    """Dense bfloat16 or float16 matrix products with float32 sums, FLOP/s."""
    num_multiprocessors: int
    """Streaming multiprocessors (CUDA), GPU cores (Apple) or cores (CPU)."""
    usable_evidence: Evidence
    notes: str
    """Where `usable_bytes` comes from."""


def metal_budget_bytes(ram_bytes: int) -> int:
    """Return the Metal working set that macOS grants on a Mac with `ram_bytes` of RAM, at least.

    `recommendedMaxWorkingSetSize` in posted logs is 2/3 of the RAM up to 32 GB (10,922.67 MiB of
    16 GB; 21,845.33 MiB of 32 GB) and 3/4 of larger ones (48 GiB of 64 GB; 72 GiB of 96 GB).
    That 36 GB belongs to the larger ones is inferred from logs that show 27 GiB. Recent macOS
    releases grant more (13.3 GiB of 18 GB): a plan for a Mac that is not here takes the smaller.
    """
    return ram_bytes * 2 // 3 if ram_bytes <= 32 * GIB else ram_bytes * 3 // 4


# fmt: off
# key, name, label GiB, usable MiB, capability, GB/s, dense TFLOP/s, multiprocessors,
#   what torch reports as total memory (published), or what it is derived from
_CUDA_ROWS: tuple[tuple[str, str, int, int, tuple[int, int], float, float, int, Evidence, str], ...]
_CUDA_ROWS = (
    ("t4", "NVIDIA T4", 16, 14_912, (7, 5), 320, 65, 40,
     "published", "torch: 14.563 GiB; nvidia-smi: 15,360 MiB"),
    ("rtx-2080-ti", "NVIDIA GeForce RTX 2080 Ti", 11, 10_816, (7, 5), 616, 53.8, 68,
     "derived", "nvidia-smi: 11,264 MiB, less the 448 MiB that the driver keeps on the T4"),
    ("rtx-3090", "NVIDIA GeForce RTX 3090", 24, 24_252, (8, 6), 936, 71, 82,
     "published", "torch: 23.684 GiB; nvidia-smi: 24,576 MiB"),
    ("rtx-4080", "NVIDIA GeForce RTX 4080", 16, 15_896, (8, 9), 717, 97.5, 76,
     "derived", "nvidia-smi: 16,376 MiB, less the 480 MiB that the driver keeps on the RTX 4090"),
    ("rtx-4090", "NVIDIA GeForce RTX 4090", 24, 24_084, (8, 9), 1_008, 165.2, 128,
     "published", "torch: 23.52 GiB; nvidia-smi: 24,564 MiB"),
    ("rtx-5090", "NVIDIA GeForce RTX 5090", 32, 32_094, (12, 0), 1_792, 209.5, 170,
     "published", "torch: 31.342 GiB; nvidia-smi: 32,607 MiB"),
    ("rtx-a4000", "NVIDIA RTX A4000", 16, 15_984, (8, 6), 448, 76.7, 48,
     "published", "torch: 15.61 GiB; nvidia-smi: 16,376 MiB"),
    ("rtx-a6000", "NVIDIA RTX A6000", 48, 45_493, (8, 6), 768, 154.8, 84,
     "published", "torch: 44.427 GiB with ECC on (47.431 GiB with ECC off)"),
    ("l4", "NVIDIA L4", 24, 22_517, (8, 9), 300, 121, 58,
     "derived", "nvidia-smi: 23,034 MiB, less the 517 MiB that the driver keeps on the A10; "
                "torch has reported up to 22.161 GiB"),
    ("l40s", "NVIDIA L40S", 48, 45_457, (8, 9), 864, 362, 142,
     "published", "torch: 44.392 GiB; nvidia-smi: 46,068 MiB"),
    ("a10", "NVIDIA A10", 24, 22_511, (8, 6), 600, 125, 72,
     "published", "NVML on an idle card: 23,028 MiB, of which 517 MiB reserved"),
    ("a10g", "NVIDIA A10G", 24, 22_587, (8, 6), 600, 70, 80,
     "published", "torch: 22,587 MiB; nvidia-smi: 23,028 MiB (22.49 GiB)"),
    ("a100-40gb", "NVIDIA A100 40GB", 40, 40_448, (8, 0), 1_555, 312, 108,
     "published", "torch: 39.50 GiB; nvidia-smi: 40,960 MiB"),
    ("a100-80gb", "NVIDIA A100 80GB", 80, 81_039, (8, 0), 2_039, 312, 108,
     "published", "torch: 79.14 GiB; nvidia-smi: 81,920 MiB"),
    ("h100", "NVIDIA H100 80GB", 80, 81_079, (9, 0), 3_350, 989.4, 132,
     "published", "torch: 79.179 GiB; nvidia-smi: 81,559 MiB"),
    ("h200", "NVIDIA H200", 141, 143_052, (9, 0), 4_800, 989.4, 132,
     "published", "torch: 139.7 GiB; nvidia-smi: 143,771 MiB"),
    ("b200", "NVIDIA B200", 180, 182_630, (10, 0), 7_672, 2_250, 148,
     "published", "CUDA: 178.35 GiB; nvidia-smi: 183,359 MiB"),
)

# generation, RAM in GiB, and of the slowest chip sold with that RAM: GB/s and GPU cores.
# The same RAM is sold with several chips; a plan should hold on the slowest.
_APPLE_ROWS: tuple[tuple[int, int, float, int], ...] = (
    (1, 8, 68.25, 7), (1, 16, 68.25, 7), (1, 32, 200, 14), (1, 64, 400, 24), (1, 128, 800, 48),
    (2, 8, 100, 8), (2, 16, 100, 8), (2, 24, 100, 8), (2, 32, 200, 16), (2, 64, 400, 30),
    (2, 96, 400, 38), (2, 128, 800, 60), (2, 192, 800, 60),
    (3, 8, 100, 8), (3, 16, 100, 8), (3, 18, 150, 14), (3, 24, 100, 8), (3, 36, 150, 14),
    (3, 48, 400, 40), (3, 64, 400, 40), (3, 96, 300, 30), (3, 128, 400, 40), (3, 256, 819, 60),
    (3, 512, 819, 80),
    (4, 16, 120, 8), (4, 24, 120, 8), (4, 32, 120, 10), (4, 36, 410, 32), (4, 48, 273, 16),
    (4, 64, 273, 16), (4, 128, 546, 40),
)
# fmt: on

_APPLE_CLOCK_HZ = {1: 1.278e9, 2: 1.398e9, 3: 1.38e9, 4: 1.47e9}
_FLOPS_PER_CORE_AND_CYCLE = 256  # 128 multiply-adds; Metal's float16 products are no faster


def _cuda_entry(
    key: str,
    name: str,
    label_gib: int,
    usable_mib: int,
    capability: tuple[int, int],
    gigabytes_per_second: float,
    teraflops: float,
    num_multiprocessors: int,
    evidence: Evidence,
    notes: str,
) -> CatalogEntry:
    return CatalogEntry(
        key=key,
        name=name,
        kind="cuda",
        label_bytes=label_gib * GIB,
        usable_bytes=usable_mib * MIB,
        compute_capability=capability,
        supports_bfloat16=has_native_bfloat16(capability),
        memory_bandwidth_bytes_per_second=gigabytes_per_second * 1e9,
        peak_matmul_flops=teraflops * 1e12,
        num_multiprocessors=num_multiprocessors,
        usable_evidence=evidence,
        notes=notes,
    )


def _apple_entry(
    generation: int, ram_gib: int, gigabytes_per_second: float, num_cores: int
) -> CatalogEntry:
    return CatalogEntry(
        key=f"m{generation}-{ram_gib}gb",
        name=f"Apple M{generation} with {ram_gib} GB",
        kind="mps",
        label_bytes=ram_gib * GIB,
        usable_bytes=metal_budget_bytes(ram_gib * GIB),
        compute_capability=None,
        supports_bfloat16=True,
        memory_bandwidth_bytes_per_second=gigabytes_per_second * 1e9,
        peak_matmul_flops=num_cores * _FLOPS_PER_CORE_AND_CYCLE * _APPLE_CLOCK_HZ[generation],
        num_multiprocessors=num_cores,
        usable_evidence="derived",
        notes="Metal's working set: 2/3 of the RAM up to 32 GB, 3/4 above; speed of the slowest "
        "chip sold with this RAM",
    )


def has_native_bfloat16(capability: tuple[int, int]) -> bool:
    """Return whether CUDA devices of this capability multiply bfloat16 in hardware.

    Ampere (8.0) brought it; before, torch emulates it, many times slower than float16.
    """
    return capability >= (8, 0)


_CPU = CatalogEntry(
    key="cpu",
    name="CPU",
    kind="cpu",
    label_bytes=16 * GIB,
    usable_bytes=14 * GIB,
    compute_capability=None,
    supports_bfloat16=False,
    memory_bandwidth_bytes_per_second=25e9,
    peak_matmul_flops=2e11,
    num_multiprocessors=4,
    usable_evidence="derived",
    notes="a laptop with four cores and 16 GB, two of which the system keeps; detection reads "
    "the real figures of the CPU it runs on",
)

CATALOG: dict[str, CatalogEntry] = {
    entry.key: entry
    for entry in (
        *(_cuda_entry(*row) for row in _CUDA_ROWS),
        *(_apple_entry(*row) for row in _APPLE_ROWS),
        _CPU,
    )
}
"""Every known device by key, such as `a10g`, `m3-18gb` or `cpu`."""


_VENDORS = frozenset({"nvidia", "tesla", "geforce", "apple", "macbook"})


def lookup(key: str) -> CatalogEntry:
    """Return the catalog entry for `key`; case, blanks, dashes and the vendor are forgiven.

    Raises:
        UsageError: no such entry; the hint has the sizes of that device, or all keys.
    """
    words = re.split(r"[\s_-]+", key.strip().lower())
    normalized = "-".join(word for word in words if word not in _VENDORS)
    by_letters = {known.replace("-", ""): entry for known, entry in CATALOG.items()}
    if (entry := by_letters.get(normalized.replace("-", ""))) is not None:
        return entry
    one_of_many = re.compile(rf"{re.escape(normalized)}-\d+gb")
    if sizes := [known for known in CATALOG if one_of_many.fullmatch(known)]:
        message = f"{excerpt(key)!r} comes with more than one size of memory"
        raise UsageError(message, where="--hardware", hint=f"name it: {' or '.join(sizes)}")
    guess = nearest(normalized, CATALOG)
    meant = f"; did you mean {guess}?" if guess else ""
    raise UsageError(
        f"{excerpt(key)!r} is not a known device{meant}",
        where="--hardware",
        hint="for another, take one of its generation with no more memory; known devices: "
        + ", ".join(CATALOG),
    )


# What NVML and torch call the boards, without the vendor's words; the whole name has to match,
# so that a laptop GPU, a `Ti`, a `SUPER` or a MIG slice is not taken for the board it is not.
_NAME_PATTERNS = {
    "rtx-a4000": r"(rtx )?a4000",
    "rtx-a6000": r"(rtx )?a6000",
    "a100-40gb": r"a100([- ](sxm4?|pcie?|pg509-200))?([- ]40gb)?",
    "a100-80gb": r"a100([- ](sxm4?|pcie?))?[- ]80gb( pcie)?",
    "h100": r"h100( (80gb hbm[23]e?|pcie|sxm5?))*",
    "h200": r"h200( nvl)?",
}


def match_name(device_name: str, total_bytes: int) -> str | None:
    """Return the key of the device that NVML, torch or sysctl calls `device_name`, or None.

    `total_bytes` is the device's total memory (all RAM on a Mac). It tells the sizes of one model
    apart and keeps a virtual or otherwise cut-down GPU from being taken for a whole one.
    """
    apple = re.fullmatch(r"Apple M(\d+)( (Pro|Max|Ultra))?", device_name.strip())
    if apple:
        key = f"m{apple.group(1)}-{round(total_bytes / GIB)}gb"
        return key if key in CATALOG else None
    short = re.sub(r"\b(nvidia|tesla|geforce|graphics)\b", "", device_name.lower())
    short = " ".join(short.split())
    for key, entry in CATALOG.items():
        pattern = _NAME_PATTERNS.get(key, re.escape(key.replace("-", " ")))
        if (
            entry.kind == "cuda"
            and re.fullmatch(pattern, short)
            and 0.93 * entry.usable_bytes <= total_bytes <= 1.07 * entry.label_bytes
        ):
            return key
    return None
