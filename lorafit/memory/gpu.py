"""What memory depends on, of a GPU: operators it can run, workspaces it asks for, its context."""

from dataclasses import dataclass
from typing import Literal

from lorafit.units import KIB, MIB

AttentionOperator = Literal["flash", "cudnn", "efficient", "math"]


@dataclass(frozen=True)
class GpuTraits:
    """The facts about an NVIDIA GPU that decide how much memory a step takes."""

    compute_capability: tuple[int, int]
    num_sms: int
    """Streaming multiprocessors; they decide some kernels' splits and the context's size."""

    @property
    def cublas_workspace_bytes(self) -> int:
        """Bytes of the workspace of each cuBLAS handle; a thread has a handle of its own.

        aten/src/ATen/cuda/CUDABlas.cpp and CublasHandlePool.cpp, `parseChosenWorkspaceSize`:
        `:4096:2:16:8`, or 32 MiB on Hopper and Blackwell. cublasLt (products with a bias) shares
        it since torch 2.8 (`unified_cublas_and_lt_workspaces`).
        """
        if self.compute_capability[0] in (9, 10, 12):
            return 32 * MIB
        return 4096 * KIB * 2 + 16 * KIB * 8

    @property
    def shared_memory_bytes(self) -> int:
        """Bytes of shared memory that a block may opt in to.

        CUDA C programming guide, table of compute capabilities.
        """
        by_capability = {(7, 0): 96, (7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99}
        major, minor = self.compute_capability
        if major in (9, 10):
            return 227 * KIB
        return by_capability.get((major, minor), 99) * KIB

    def attention_operator(
        self,
        *,
        head_dim: int,
        is_half: bool,
        is_bfloat16: bool,
        has_mask: bool,
        grouped: bool,
        efficient_only: bool,
    ) -> AttentionOperator:
        """Return the operator that `scaled_dot_product_attention` runs in training.

        aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, `select_sdp_backend`: the order is
        flash, efficient, math, with cuDNN first on Hopper and data-centre Blackwell. Flash and
        cuDNN want sm_80 and 16-bit numbers; flash takes no mask; grouped keys and values go to
        flash, cuDNN or math. Restricted to the efficient operator, a grouped call repeats keys
        and values first, as the caller must.
        """
        major, minor = self.compute_capability
        if efficient_only:
            return "efficient"
        ampere = major >= 8 and is_half
        if ampere and (major == 9 or (major, minor) == (10, 0)) and head_dim <= 128:
            return "cudnn"
        if ampere and not has_mask and head_dim <= 256:
            return "flash"
        if grouped or (is_bfloat16 and major < 8):
            return "math"
        return "efficient"


MEASURED_CONTEXT_BYTES: dict[str, tuple[int, str]] = {
    "t4": (147_718_144, "measured on a T4 in training, 140.9 MiB"),
    "rtx-3090": (256 * MIB, "measured on an RTX 3090"),
    "a100-40gb": (410 * MIB, "measured on an A100, about 0.4 GiB"),
    "a100-80gb": (410 * MIB, "measured on an A100, about 0.4 GiB"),
}
"""Memory of the CUDA context at the peak of training, in no counter of torch: loaded kernels,
the driver's own structures, cuBLAS. By catalog key, with where the figure comes from."""


def context_bytes(gpu: GpuTraits, catalog_key: str | None) -> tuple[int, str]:
    """Return the bytes of the CUDA context and where the figure comes from.

    Where none was measured, a fit: T4 (40 multiprocessors, 141 MiB), RTX 3090 (82, 256 MiB) and
    RTX 6000 Ada (142, 426 MiB) lie on 29 MiB + 2.79 MiB a multiprocessor; the one measured
    data-centre GPU, the A100 (108), takes 3.8 MiB a multiprocessor.
    """
    measured = MEASURED_CONTEXT_BYTES.get(catalog_key or "")
    if measured is not None:
        return measured
    if gpu.compute_capability[1] == 0 and gpu.compute_capability[0] >= 8:
        return int(gpu.num_sms * 3.8 * MIB), (
            f"fitted: 3.8 MiB for each of {gpu.num_sms} multiprocessors, as on the A100"
        )
    return int((29 + 2.79 * gpu.num_sms) * MIB), (
        f"fitted: 29 MiB and 2.79 MiB for each of {gpu.num_sms} multiprocessors"
    )
