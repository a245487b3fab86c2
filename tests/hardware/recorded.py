"""Answers in the very form that NVML, sysctl, /proc and torch give them, to feed to the probes.

The totals of T4, A10 and A100, and the reserves of T4 and A10, are published readings; UUIDs,
processes and the rest of the texts are made up.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lorafit.units import MIB


class NVMLError(Exception):
    """As pynvml raises for a question that a GPU or driver does not support."""


@dataclass
class Board:
    """What one GPU answers, in MiB as nvidia-smi prints it."""

    name: str
    uuid: str
    total_mib: int
    reserved_mib: int = 0
    used_mib: int = 0
    capability: tuple[int, int] = (8, 0)
    processes: tuple[tuple[int, int | None], ...] = ()
    slices: tuple["Board", ...] = ()
    ecc_errors: int | None = None
    celsius: int | None = None
    slowdown_celsius: int | None = None
    clock_reasons: int | None = None
    p2p_status: int | None = None


T4 = Board("Tesla T4", "GPU-0b9f8f1c-3b0a-9a40-7b5e-1f0e4f1a2b3c", 15_360, 448, 0, (7, 5))
A10 = Board(
    "NVIDIA A10", "GPU-749a4951-86af-0c5a-2a58-67aa5ebf9d4e", 23_028, 517, 0, (8, 6), ecc_errors=0
)
A100 = Board(
    "NVIDIA A100-SXM4-80GB", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 81_920, 881, 0, (8, 0)
)
A100_MIG = Board(
    "NVIDIA A100-SXM4-40GB",
    "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
    40_960,
    512,
    0,
    (8, 0),
    slices=(
        Board(
            "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
            "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
            20_096,
            0,
            13,
        ),
        Board(
            "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
            "MIG-0c757cd7-e942-5726-a0b8-0e8fb7067135",
            4_864,
            0,
            7,
        ),
    ),
)


@dataclass
class RecordedNvml:
    """The functions of pynvml that the probe calls, answering for `boards`."""

    boards: list[Board]
    driver: str = "535.129.03"
    knows_memory_v2: bool = True
    has_driver: bool = True
    nvmlMemory_v2: int = 0x2000028
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: int = 1
    NVML_VOLATILE_ECC: int = 0
    NVML_TEMPERATURE_GPU: int = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: int = 1
    NVML_P2P_CAPS_INDEX_WRITE: int = 1
    NVML_P2P_STATUS_OK: int = 0
    NVML_P2P_STATUS_UNKNOWN: int = 6
    num_open: int = field(default=0)

    NVMLError = NVMLError

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise NVMLError("NVML Shared Library Not Found")
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return self.driver.encode()

    def nvmlDeviceGetCount(self) -> int:
        return len(self.boards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Board:
        return self.boards[index]

    def nvmlDeviceGetName(self, board: Board) -> str:
        return board.name

    def nvmlDeviceGetUUID(self, board: Board) -> str:
        return board.uuid

    def nvmlDeviceGetMemoryInfo(self, board: Board, version: int | None = None) -> Any:
        if version is not None:
            if not self.knows_memory_v2:
                raise NVMLError("Function Not Found")
            return SimpleNamespace(
                total=board.total_mib * MIB,
                reserved=board.reserved_mib * MIB,
                free=(board.total_mib - board.reserved_mib - board.used_mib) * MIB,
            )
        used = board.reserved_mib + board.used_mib  # version 1 counts the reserve as used
        return SimpleNamespace(total=board.total_mib * MIB, free=(board.total_mib - used) * MIB)

    def nvmlDeviceGetCudaComputeCapability(self, board: Board) -> tuple[int, int]:
        return board.capability

    def nvmlDeviceGetMigMode(self, board: Board) -> list[int]:
        if board.capability < (8, 0):
            raise NVMLError("Not Supported")
        return [int(bool(board.slices))] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, board: Board) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, board: Board, index: int) -> Board:
        if index >= len(board.slices):
            raise NVMLError("Not Found")
        return board.slices[index]

    def nvmlDeviceGetComputeRunningProcesses(self, board: Board) -> list[Any]:
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib * MIB)
            for pid, mib in board.processes
        ]

    def nvmlDeviceGetTotalEccErrors(self, board: Board, kind: int, counter: int) -> int:
        if board.ecc_errors is None:
            raise NVMLError("Not Supported")
        return board.ecc_errors

    def nvmlDeviceGetTemperature(self, board: Board, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return _supported(board.celsius)

    def nvmlDeviceGetTemperatureThreshold(self, board: Board, threshold: int) -> int:
        assert threshold == self.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return _supported(board.slowdown_celsius)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, board: Board) -> int:
        return _supported(board.clock_reasons)

    def nvmlDeviceGetP2PStatus(self, left: Board, right: Board, capability: int) -> int:
        assert capability == self.NVML_P2P_CAPS_INDEX_WRITE
        return max(_supported(left.p2p_status), _supported(right.p2p_status))


def _supported(value: int | None) -> int:
    if value is None:
        raise NVMLError("Not Supported")
    return value


TORCH_CUDA = """from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '2.13.0+cu126'
debug = False
cuda: Optional[str] = '12.6'
git_version = '1234567890abcdef1234567890abcdef12345678'
hip: Optional[str] = None
rocm: Optional[str] = None
xpu: Optional[str] = None
"""
TORCH_CPU = TORCH_CUDA.replace("'2.13.0+cu126'", "'2.13.0+cpu'").replace("'12.6'", "None")

CPUINFO_EPYC = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512vl

processor\t: 1
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 avx512vl
"""
CPUINFO_CORE_I7 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz
flags\t\t: fpu sse2 avx avx2 bmi2
"""
CPUINFO_GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes sha1 sha2 crc32 atomics sve bf16 i8mm
CPU implementer\t: 0x41
"""
MEMINFO = """MemTotal:       16384000 kB
MemFree:         1024000 kB
MemAvailable:   12288000 kB
SwapTotal:             0 kB
"""
SYSCTL_M3 = """machdep.cpu.brand_string: Apple M3 Pro
hw.memsize: 19327352832
hw.ncpu: 11
kern.osproductversion: 14.5
"""
SYSCTL_INTEL = """machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz
hw.memsize: 17179869184
hw.ncpu: 12
kern.osproductversion: 13.6
"""
