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
        dropout: float = 0.0,
    ) -> AttentionOperator:
        """Return the operator that `scaled_dot_product_attention` runs in training.

        aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, `select_sdp_backend` of torch 2.13:
        the order is flash, efficient, math, with cuDNN first on Hopper and data-centre Blackwell
        (from cuDNN 9.15.1, which wheels for CUDA 13 bring). Flash and cuDNN want sm_80 and 16-bit
        numbers; flash takes no mask, cuDNN only some dropout. Grouped keys and values go to
        cuDNN, flash or math. Restricted to the efficient operator, a grouped call repeats keys
        and values first, as the caller must.
        """
        if efficient_only:
            return "efficient"
        fused = self.compute_capability[0] >= 8 and is_half
        if fused and self._prefers_cudnn(head_dim, dropout):
            return "cudnn"
        if fused and not has_mask and self._trains_with_flash(head_dim, dropout):
            return "flash"
        if grouped or (is_bfloat16 and self.compute_capability[0] < 8):
            return "math"
        return "math" if head_dim % self._efficient_alignment(is_half) else "efficient"

    def _prefers_cudnn(self, head_dim: int, dropout: float) -> bool:
        # check_prefer_cudnn_attention, check_cudnn_tensor_shapes, check_cudnn_dropout
        in_16ths = (dropout * 16).is_integer()
        return (
            self.compute_capability[0] in (9, 10)
            and head_dim <= 128
            and head_dim % 8 == 0
            and in_16ths
        )

    def _trains_with_flash(self, head_dim: int, dropout: float) -> bool:
        # check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120
        major, minor = self.compute_capability
        if major == 12 or (major == 8 and minor >= 6):
            return head_dim <= 192 or (224 < head_dim <= 256 and dropout == 0)
        return head_dim <= 256

    def _efficient_alignment(self, is_half: bool) -> int:
        # minimum_gemm_alignment
        major = self.compute_capability[0]
        has_tensor_cores = major >= 8 or (major == 7 and is_half)
        return (8 if is_half else 4) if has_tensor_cores else 1


_POSTED = "read from a posted out-of-memory message of one process on"
MEASURED_CONTEXT_BYTES: dict[str, tuple[int, str]] = {
    "t4": (147_718_144, "measured on a T4 in training, 140.9 MiB"),
    "rtx-3090": (256 * MIB, "measured on an RTX 3090"),
    "rtx-4090": (510 * MIB, f"{_POSTED} an RTX 4090, 0.49 to 0.51 GiB"),
    "l40s": (507 * MIB, f"{_POSTED} an L40, which has the same chip, 0.50 GiB"),
    "a100-40gb": (414 * MIB, "posted: 414 MiB for each idle process on an A100"),
    "a100-80gb": (414 * MIB, "posted: 414 MiB for each idle process on an A100"),
}
"""Memory of the CUDA context at the peak of training, in no counter of torch: loaded kernels,
the driver's own structures, cuBLAS. By catalog key, with where the figure comes from. PyTorch's
out-of-memory message names what the process holds, what is allocated and what is cached: the
rest is the context, to 0.01 GiB. It differs by some 100 MiB with the kernels that are loaded."""


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
