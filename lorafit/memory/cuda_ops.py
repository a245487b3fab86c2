"""What only CUDA allocates: scratch memory inside operators, which no `meta` kernel shows.

`SCRATCH` has one row an operator: the buffers it takes before its outputs, and after them; all
are given back when it returns. Every size is the formula of the kernel that is named as source,
none is measured. Sizes are in bytes.

Legend: N outputs and K inner dimension of a product.
"""

from math import ceil
from typing import Any

import torch

from lorafit.memory.cuda_attention import ATTENTION
from lorafit.memory.scratch import Call, Scratch, Sizes, copy_unless_contiguous, tensor_bytes


def _softmax_input(call: Call) -> Sizes:
    return copy_unless_contiguous(call.args[0])


def _softmax_backward(call: Call) -> Sizes:
    # The kernel multiplies grad by output into a tensor of its own first.
    grad, output = call.args[:2]
    return [tensor_bytes(grad), *copy_unless_contiguous(output)]


def _logsumexp(call: Call) -> Sizes:
    """The maxima, and a copy of the input from which they are subtracted."""
    source, dims = call.args[:2]
    num_sums = source.numel()
    for dim in dims:
        num_sums //= source.shape[dim]
    return [num_sums * source.element_size(), tensor_bytes(source)]


def _safe_softmax(call: Call) -> Sizes:
    """The softmax, and which scores are hidden: the output is a third tensor."""
    scores = call.args[0]
    num_rows = scores.numel() // scores.shape[-1]
    return [tensor_bytes(scores), scores.numel(), num_rows, scores.element_size()]


def _quantized_rows(call: Call) -> Sizes:
    """Absolute values of fp16 inputs, and which of them are outliers."""
    threshold = call.args[1] if len(call.args) > 1 else call.kwargs.get("threshold", 0.0)
    inputs = call.args[0]
    return [tensor_bytes(inputs), inputs.numel()] if threshold > 0 else []


def _int8_product(call: Call) -> Sizes:
    """Sums in int32, and the fp16 product that is converted where another dtype is wanted."""
    inputs, quantized, weight = call.args[:3]
    num_outputs = quantized.numel() // quantized.shape[-1] * weight.shape[0]
    half = [] if inputs.dtype == torch.float16 else [num_outputs * 2]
    return [num_outputs * 4, *half]


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
    "aten::_safe_softmax": Scratch(
        "SoftMax.cpp _safe_softmax", before=_safe_softmax, on_every_device=True
    ),
    "aten::logsumexp": Scratch(
        "ReduceOps.cpp logsumexp_out_impl", before=_logsumexp, on_every_device=True
    ),
    **ATTENTION,
    "aten::_foreach_norm": Scratch(
        "cuda/ForeachReduceOp.cu foreach_tensor_norm_cuda", before=_foreach_norm
    ),
    "bitsandbytes::gemm_4bit": Scratch(
        "bitsandbytes/backends/cuda/ops.py _dequant_linear_fallback", before=_dequantized_weight
    ),
    "bitsandbytes::int8_vectorwise_quant": Scratch(
        "bitsandbytes/backends/cuda/ops.py int8_vectorwise_quant", after=_quantized_rows
    ),
    "bitsandbytes::int8_mixed_scaled_mm": Scratch(
        "bitsandbytes/backends/cuda/ops.py int8_linear_matmul, int8_mm_dequant",
        before=_int8_product,
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
