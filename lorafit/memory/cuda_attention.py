"""What CUDA's attention operators allocate beside their outputs.

Legend: B rows, H heads, M queries, N keys, D head size; without padding N tokens of B rows.
"""

from math import ceil

import torch

from lorafit.memory.gpu import GpuTraits
from lorafit.memory.scratch import Call, Scratch, Sizes, copy_unless_contiguous, tensor_bytes


def _round_up(number: int, multiple: int) -> int:
    return ceil(number / multiple) * multiple


def _efficient_backward_grad(call: Call) -> Sizes:
    # The kernel reads grad as [B, M, H, D] and copies it if it lies otherwise.
    return copy_unless_contiguous(call.args[0].transpose(1, 2))


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


def _flash_forward(call: Call) -> Sizes:
    """Sums of a forward whose keys are split over blocks, as it is done to fill a large GPU."""
    query, key = call.args[:2]
    dropout = call.args[3] if len(call.args) > 3 else 0.0
    rows, heads, num_queries, head_dim = query.shape
    width = _flash_width(head_dim)
    block = 256 if head_dim <= 64 else 128 if head_dim <= 128 else 64
    splits = _flash_splits(
        rows * heads * ceil(num_queries / 64), 2 * call.gpu.num_sms, ceil(key.shape[2] / block)
    )
    if dropout > 0 or splits == 1:
        return []
    sums = splits * rows * heads * num_queries * 4
    return [sums, sums * width]


def _flash_splits(num_blocks: int, num_sms: int, num_key_blocks: int) -> int:
    """Return into how many parts keys are split (flash_api.cpp, `num_splits_heuristic`)."""
    if num_blocks >= 0.8 * num_sms:
        return 1
    largest = min(128, num_sms, num_key_blocks)
    efficiencies = {}
    for splits in range(1, largest + 1):
        if splits == 1 or ceil(num_key_blocks / splits) != ceil(num_key_blocks / (splits - 1)):
            waves = num_blocks * splits / num_sms
            efficiencies[splits] = waves / ceil(waves)
    enough = 0.85 * max(efficiencies.values())
    return next(splits for splits, value in efficiencies.items() if value >= enough)


def _flash_width(head_dim: int) -> int:
    return _round_up(head_dim, 32 if head_dim <= 128 else 64)


def _flash_backward_grad(call: Call) -> Sizes:
    grad, out = call.args[0], call.args[4]
    return copy_unless_contiguous(grad.transpose(1, 2), out.transpose(1, 2))


def _flash_backward(call: Call) -> Sizes:
    query, key = call.args[1:3]
    rows, heads, num_queries, head_dim = query.shape
    key_heads, num_keys = key.shape[1], key.shape[2]
    queries = _round_up(num_queries, 128)
    sizes = [rows * heads * queries * 4, rows * queries * heads * _flash_width(head_dim) * 4]
    if key_heads != heads:
        sizes += [rows * num_keys * heads * head_dim * query.element_size()] * 2
    return sizes


def _varlen_backward_grad(call: Call) -> Sizes:
    grad, out = call.args[0], call.args[4]
    return copy_unless_contiguous(grad, out)


def _varlen_backward(call: Call) -> Sizes:
    query, key = call.args[1:3]
    num_tokens, heads, head_dim = query.shape
    num_rows = call.args[6].numel() - 1
    rounded = num_tokens + 128 * num_rows
    sizes = [heads * rounded * 4, rounded * heads * _flash_width(head_dim) * 4]
    if key.shape[1] != heads:
        sizes += [key.shape[0] * heads * head_dim * query.element_size()] * 2
    return sizes


def _cudnn_backward(call: Call) -> Sizes:
    """One workspace: sums of the queries' gradient in fp32, of grad by output, of grouped keys.

    What cuDNN's closed backend may add to it is not known.
    """
    query, key, value = call.args[1:4]
    rows, heads, num_queries, head_dim = query.shape
    size = rows * heads * num_queries * (head_dim + 1) * 4
    if key.shape[1] != heads:
        width = head_dim + value.shape[3]
        size += rows * heads * key.shape[2] * width * query.element_size()
    return [size]


ATTENTION: dict[str, Scratch] = {
    "aten::_scaled_dot_product_efficient_attention": Scratch(
        "transformers/cuda/attention.cu kNeedsOutputAccumulatorBuffer", after=_efficient_forward
    ),
    "aten::_scaled_dot_product_efficient_attention_backward": Scratch(
        "transformers/cuda/attention_backward.cu, mem_eff_attention/kernel_backward.h",
        before=_efficient_backward_grad,
        after=_efficient_backward,
    ),
    "aten::_scaled_dot_product_flash_attention": Scratch(
        "transformers/cuda/flash_attn/flash_api.cpp set_params_splitkv", after=_flash_forward
    ),
    "aten::_scaled_dot_product_flash_attention_backward": Scratch(
        "transformers/cuda/flash_attn/flash_api.cpp mha_bwd",
        before=_flash_backward_grad,
        after=_flash_backward,
    ),
    "torch_attn::_varlen_attn_backward": Scratch(
        "transformers/cuda/flash_attn/flash_api.cpp mha_varlen_bwd",
        before=_varlen_backward_grad,
        after=_varlen_backward,
    ),
    "aten::_scaled_dot_product_cudnn_attention_backward": Scratch(
        "cudnn_frontend/node/scaled_dot_product_flash_attention.h get_fe_workspace_size_node",
        after=_cudnn_backward,
    ),
}
"""Rows of `cuda_ops.SCRATCH`."""
