"""Matrix products with frozen weights, and with adapters kept in a wider number format.

Legend: N tokens, I input features, O output features, R rank.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Set by `use_onednn`; oneDNN's fp32 products, where they are the faster ones.
_onednn = False
_traced_device = "cpu"


CPU_ROW_MULTIPLE = 64
"""oneDNN keeps about 0.6 MiB for every shape that it has multiplied. Rows in these multiples alone
go there, so that batches of all sizes do not add up to hundreds of MiB."""


def use_onednn(enabled: bool) -> None:
    """Let fp32 products on the CPU run in oneDNN instead of the BLAS that PyTorch has."""
    global _onednn
    _onednn = enabled and bool(torch._C._has_mkldnn)


def uses_onednn() -> bool:
    """Return whether fp32 products on the CPU run in oneDNN."""
    return _onednn


def device_type(tensor: torch.Tensor) -> str:
    """Return where a tensor lives, or where a tensor on `meta` stands for one."""
    return _traced_device if tensor.device.type == "meta" else tensor.device.type


@contextlib.contextmanager
def tracing_for(device_type: str) -> Iterator[None]:
    """Let tensors on `meta` go the way of those on a device."""
    global _traced_device
    previous, _traced_device = _traced_device, device_type
    try:
        yield
    finally:
        _traced_device = previous


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return inputs [N, I] times weight [O, I], plus bias [O]."""
    if _takes_onednn(inputs):
        return onednn_product(inputs, weight, bias)
    return functional.linear(inputs, weight, bias)


def onednn_product(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return `linear` as oneDNN computes it on the CPU."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


def _takes_onednn(tensor: torch.Tensor) -> bool:
    return (
        _onednn
        and tensor.dtype == torch.float32
        and device_type(tensor) == "cpu"
        and tensor.shape[0] % CPU_ROW_MULTIPLE == 0
    )


def fitting_rows(count: int, like: torch.Tensor) -> int:
    """Return the next number of rows that oneDNN takes, where it multiplies such a tensor.

    A trace on `meta` is the same whichever library this process has chosen.
    """
    if not (_onednn and like.device.type == "cpu"):
        return count
    return -(-count // CPU_ROW_MULTIPLE) * CPU_ROW_MULTIPLE


def frozen_product(base: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return a frozen layer's output [N, O] for inputs [N, I]; quantized layers do their own."""
    if type(base) is nn.Linear:
        return linear(inputs, base.weight, base.bias)
    output: torch.Tensor = base(inputs)
    return output


def add_input_gradient(
    total: torch.Tensor | None, gradient: torch.Tensor, base: nn.Module
) -> torch.Tensor:
    """Return `total` [N, I] plus the gradient [N, O] taken back through a frozen layer."""
    weight = _dense_weight(base, gradient.dtype)
    if total is None:
        return linear(gradient, weight.t(), None)
    if _takes_onednn(gradient):
        return total.add_(linear(gradient, weight.t(), None))
    return total.addmm_(gradient, weight)


def _dense_weight(base: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [O, I] of a frozen layer, dequantized if it is stored in fewer bits."""
    kind = type(base).__name__
    layer: Any = base
    if kind == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        # A weight that was gathered from shards has lost its scales; the layer keeps them then.
        state = getattr(layer.weight, "quant_state", None) or layer.quant_state
        dense: torch.Tensor = dequantize_4bit(layer.weight, state)
        return dense.to(dtype)
    if kind == "Linear8bitLt":
        # Rows are scaled so that their largest number is 127 (LLM.int8(), arXiv 2208.07339).
        quantized: torch.Tensor = layer.state.CB.to(dtype, copy=True)
        return quantized.mul_(layer.state.SCB.unsqueeze(1).mul(1.0 / 127.0))
    weight: torch.Tensor = layer.weight
    return weight


# Adapters are fp32 masters beside 16-bit activations. Rounding them, or their low-rank products, to
# 16 bit would add an error as large as that of the whole forward and backward pass. Instead a thin
# fp32 matrix goes into 16-bit products as two matrices, its rounding and what that left over, and
# the products come out of their fp32 accumulators. Thin as they are, they cost next to nothing.


def project(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return values [N, I] times a thin factor [R, I] transposed, in the factor's dtype [N, R]."""
    if values.dtype == factor.dtype:
        return linear(values, factor, None)
    if device_type(values) == "cuda":
        halves = torch.cat(_split(factor, values.dtype))
        return _sum_halves(torch.mm(values, halves.t(), out_dtype=factor.dtype), dim=1)
    parts = [some.to(factor.dtype) @ factor.t() for some in torch.split(values, _WIDE_ROWS)]
    return torch.cat(parts)


def add_product(total: torch.Tensor, low: torch.Tensor, factor: torch.Tensor) -> None:
    """Add low [N, R] times a factor [O, R] transposed to `total` [N, O], in place."""
    if total.dtype == factor.dtype:
        total.addmm_(low, factor.t())
        return
    (high_low, rest_low), (high, rest) = _split(low, total.dtype), _split(factor, total.dtype)
    # (a + b)(c + d) without b d, which is below the rounding of the sum.
    total.addmm_(torch.cat((high_low, rest_low, high_low), 1), torch.cat((high, high, rest), 1).t())


def weight_gradient(low: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return low [N, R] transposed times values [N, I], in the dtype of `low`: [R, I]."""
    if values.dtype == low.dtype:
        return low.contiguous().t() @ values  # columns of a wider matrix were half as slow again
    if device_type(values) == "cuda":
        halves = torch.cat(_split(low, values.dtype), 1)
        return _sum_halves(torch.mm(halves.t(), values, out_dtype=low.dtype), dim=0)
    total = low.new_zeros(low.shape[1], values.shape[1])
    for some, others in zip(
        torch.split(low, _WIDE_ROWS), torch.split(values, _WIDE_ROWS), strict=True
    ):
        total.addmm_(some.t(), others.to(low.dtype))
    return total


_WIDE_ROWS = 1024
"""Tokens that are widened at once, which bounds the memory for it."""


def _split(thin: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix rounded to `dtype`, and the rounding's error in that dtype."""
    rounded = thin.to(dtype)
    return rounded, (thin - rounded).to(dtype)


def _sum_halves(product: torch.Tensor, dim: int) -> torch.Tensor:
    first, second = product.chunk(2, dim)
    return first + second
