"""What only CUDA allocates: scratch memory inside operators, which no `meta` kernel shows.

`SCRATCH` has one row an operator: the buffers it takes before its outputs, and after them; all
are given back when it returns. Every size is the formula of the kernel that is named as source,
none is measured. Sizes are in bytes.

Legend: B rows, H heads, M queries, N keys, D head size, K inner dimension of a product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from lorafit.memory.gpu import GpuTraits

_aten = torch.ops.aten
Sizes = list[int]


@dataclass(frozen=True)
class Call:
    """One call of an operator, with its outputs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gpu: GpuTraits


@dataclass(frozen=True)
class Scratch:
    """A row of the table."""

    source: str
    """Where the formula comes from."""
    before: Callable[[Call], Sizes] | None = None
    """Buffers taken before the outputs exist."""
    after: Callable[[Call], Sizes] | None = None
    """Buffers taken once the outputs exist."""


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a contiguous copy of a tensor."""
    return tensor.numel() * tensor.element_size()


def _copy_unless_contiguous(*tensors: torch.Tensor) -> Sizes:
    return [tensor_bytes(tensor) for tensor in tensors if not tensor.is_contiguous()]


def _softmax_input(call: Call) -> Sizes:
    return _copy_unless_contiguous(call.args[0])


def _softmax_backward(call: Call) -> Sizes:
    # The kernel multiplies grad by output into a tensor of its own first.
    grad, output = call.args[:2]
    return [tensor_bytes(grad), *_copy_unless_contiguous(output)]


def _round_up(number: int, multiple: int) -> int:
    return ceil(number / multiple) * multiple


def _efficient_backward_grad(call: Call) -> Sizes:
    # The kernel reads grad as [B, M, H, D] and copies it if it lies otherwise.
    return _copy_unless_contiguous(call.args[0].transpose(1, 2))


def _efficient_backward(call: Call) -> Sizes:
    query, key, value = call.args[1:4]
    rows, heads, num_queries, head_dim = query.shape
    num_keys = key.shape[2]
    dropout = call.args[9] > 0 if len(call.args) > 9 else False
    is_half = query.dtype != torch.float32
    largest = max(head_dim, value.shape[3])
    block_i, block_j, max_k = _backward_kernel(call.gpu, largest, is_half, dropout)
    in_registers = is_half and max_k <= block_i
    capability = call.gpu.compute_capability
    delta = rows * heads * num_queries * 4
    sizes = [delta]
    if not (is_half and (in_registers or capability[0:2] != (7, 0))):
        sizes = [tensor_bytes(call.args[0]) * 4 // call.args[0].element_size(), delta]
    splits = ceil(num_keys / block_j)
    if rows * heads >= 256 and num_keys <= 2 * block_j:
        splits = 1
    accumulates_keys = is_half and not in_registers
    if accumulates_keys:
        splits = min(splits, 200 // (rows * heads))
    splits = max(splits, 1)
    floats = ceil(num_queries / block_i) * ceil(head_dim / block_j) * (4 + block_i * block_j)
    if accumulates_keys:
        width = _round_up(head_dim, block_i) + _round_up(value.shape[3], block_i)
        floats += splits * block_j * width
    return [*sizes, rows * heads * _round_up(floats, 4) * 4]


def _backward_kernel(
    gpu: GpuTraits, head_dim: int, is_half: bool, dropout: bool
) -> tuple[int, int, int]:
    """Return (queries a block, keys a block, largest head size) of the kernel that is taken."""
    large_memory = gpu.shared_memory_bytes >= 140 * 1024
    if head_dim <= 32:
        return 64, 64, 32
    if head_dim <= 64:
        return 64, 64, 64
    ampere = gpu.compute_capability[0] >= 8
    if ampere and is_half and not large_memory and head_dim <= 96 and not dropout:
        return 128, 64, 96
    if head_dim <= 128:
        if is_half and ampere and large_memory:
            return 128, 128, 128
        if is_half and not ampere:
            return 128, 64, 128
        return 64, 64, 128
    return 64, 64, 1 << 16


def _efficient_forward(call: Call) -> Sizes:
    # Heads wider than 128 keep their fp32 sums in memory.
    query, value = call.args[0], call.args[2]
    if value.shape[-1] <= 128 or query.dtype == torch.float32:
        return []
    return [query.shape[0] * query.shape[1] * query.shape[2] * value.shape[-1] * 4]


def _flash_backward_grad(call: Call) -> Sizes:
    grad, out = call.args[0], call.args[4]
    return _copy_unless_contiguous(grad.transpose(1, 2), out.transpose(1, 2))


def _flash_backward(call: Call) -> Sizes:
    query, key = call.args[1:3]
    rows, heads, num_queries, head_dim = query.shape
    key_heads, num_keys = key.shape[1], key.shape[2]
    queries = _round_up(num_queries, 128)
    width = _round_up(head_dim, 32) if head_dim <= 192 else 256
    sizes = [rows * heads * queries * 4, rows * queries * heads * width * 4]
    if key_heads != heads:
        sizes += [rows * num_keys * heads * head_dim * query.element_size()] * 2
    return sizes


def _foreach_norm(call: Call) -> Sizes:
    tensors = call.args[0]
    chunks = max((ceil(tensor.numel() / 65536) for tensor in tensors), default=0)
    return [len(tensors) * chunks * 4]


def _dequantized_weight(call: Call) -> Sizes:
    """Bitsandbytes' product with a 4-bit weight B [N, K], for inputs A [.., K]."""
    inputs, _, shape = call.args[:3]
    blocksize = call.args[4]
    num_inputs = inputs.numel() // inputs.shape[-1]
    if _has_fused_kernel(num_inputs, shape, blocksize):
        return []
    sizes = []
    absmax_8bit = call.kwargs.get("absmax_8bit")
    if absmax_8bit is not None:
        sizes = [absmax_8bit.numel() * 4] * 2
    return [*sizes, shape[0] * shape[1] * inputs.element_size()]


def _has_fused_kernel(num_inputs: int, shape: Any, blocksize: int) -> bool:
    """Return whether the weight stays packed in forward.

    A simplification of bitsandbytes' tables by GPU, which differ between 8 and 512 inputs.
    Backward always unpacks the weight, so the peak does not hang on it.
    """
    if shape[1] % blocksize:
        return False
    is_small = shape[0] * shape[1] < 4 * 1024 * 1024 and 2 * shape[1] < shape[0]
    return num_inputs <= (320 if is_small else 64)


SCRATCH: dict[str, Scratch] = {
    "aten::_softmax": Scratch("cuda/SoftMax.cu host_softmax", before=_softmax_input),
    "aten::_log_softmax": Scratch("cuda/SoftMax.cu host_softmax", before=_softmax_input),
    "aten::_softmax_backward_data": Scratch(
        "cuda/SoftMax.cu softmax_backward_cuda_out", after=_softmax_backward
    ),
    "aten::_scaled_dot_product_efficient_attention": Scratch(
        "transformers/cuda/attention.cu kNeedsOutputAccumulatorBuffer", after=_efficient_forward
    ),
    "aten::_scaled_dot_product_efficient_attention_backward": Scratch(
        "transformers/cuda/attention_backward.cu, mem_eff_attention/kernel_backward.h",
        before=_efficient_backward_grad,
        after=_efficient_backward,
    ),
    "aten::_scaled_dot_product_flash_attention_backward": Scratch(
        "transformers/cuda/flash_attn/flash_api.cpp mha_bwd",
        before=_flash_backward_grad,
        after=_flash_backward,
    ),
    "aten::_foreach_norm": Scratch(
        "cuda/ForeachReduceOp.cu foreach_tensor_norm_cuda", before=_foreach_norm
    ),
    "bitsandbytes::gemm_4bit": Scratch(
        "bitsandbytes/backends/cuda/ops.py _dequant_linear_fallback", before=_dequantized_weight
    ),
}

MATRIX_PRODUCTS = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::addbmm",
        "aten::_addmm_activation",
        "bitsandbytes::gemm_4bit",
    }
)
"""Operators that call cuBLAS: the first in a thread takes the workspace of its handle, for good."""

OUTPUT_ORDER: dict[str, tuple[int, ...]] = {
    "bitsandbytes::quantize_4bit": (1, 0),
    "bitsandbytes::quantize_blockwise": (1, 0),
}
"""The order in which kernels allocate their outputs, where it is not the order they return."""

HOST_OUTPUTS: dict[str, frozenset[int]] = {
    "aten::_scaled_dot_product_efficient_attention": frozenset({2, 3}),
    "aten::_scaled_dot_product_flash_attention": frozenset({8}),
    "aten::_scaled_dot_product_cudnn_attention": frozenset({8}),
}
"""Outputs that lie in the memory of the host outside of CUDA graphs: seeds of dropout."""
