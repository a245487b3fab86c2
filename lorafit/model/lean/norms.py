"""Normalizations with frozen weights, as prologues of the products that read them.

They keep their input and one or two numbers a token; `normalize` is one on its own.

Legend: [...] any leading dimensions, H features.
"""

from typing import Any

import torch
from torch import nn

from lorafit.model.lean.fusion import fusible
from lorafit.model.lean.prologues import Prologue, Tensors

_aten = torch.ops.aten


class LayerNorm:
    """`torch.nn.LayerNorm` over the last dimension."""

    def __init__(self, module: nn.LayerNorm) -> None:
        self._module = module

    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return (x - mean) / std * weight + bias, with mean and 1 / std [..., 1]."""
        norm = self._module
        output, mean, rstd = torch.native_layer_norm(
            inputs[0], norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        return output, (mean, rstd)

    def restore(self, inputs: Tensors, statistics: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Normalize again."""
        return self.forward(inputs)

    def backward(self, gradient: torch.Tensor, inputs: Tensors, statistics: Tensors) -> Tensors:
        """Return PyTorch's own gradient."""
        norm = self._module
        shape = list(norm.normalized_shape)
        of_inputs: torch.Tensor = _aten.native_layer_norm_backward(
            gradient, inputs[0], shape, *statistics, norm.weight, norm.bias, [True, False, False]
        )[0]
        return (of_inputs,)


class RMSNorm:
    """x / rms(x) * weight over the last dimension, in fp32 inside (arXiv 1910.07467).

    Args:
        module: a module of transformers with a `weight`.
        eps: added to the mean square.
        offset: added to the weight; Gemma stores weights around 0.
    """

    def __init__(self, module: nn.Module, eps: float, offset: float = 0.0) -> None:
        self._module = module
        self._eps = eps
        self._offset = offset

    def _weight(self, dtype: torch.dtype) -> torch.Tensor:
        weight: Any = self._module.weight
        scale: torch.Tensor = weight.to(dtype)
        return scale + self._offset if self._offset else scale

    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the normalized inputs and 1 / rms(x) [..., 1]."""
        rstd = _inverse_rms(inputs[0], self._eps)
        return self.restore(inputs, (rstd,))

    def restore(self, inputs: Tensors, statistics: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Normalize again, with the statistics at hand."""
        (rstd,) = statistics
        return _scale(inputs[0], rstd, self._weight(rstd.dtype)), statistics

    def backward(self, gradient: torch.Tensor, inputs: Tensors, statistics: Tensors) -> Tensors:
        """Return the gradient of the inputs, computed in fp32."""
        (rstd,) = statistics
        return (_scale_backward(gradient, inputs[0], rstd, self._weight(rstd.dtype)),)


@fusible
def _inverse_rms(inputs: torch.Tensor, eps: float) -> torch.Tensor:
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    return (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()


@fusible
def _scale(inputs: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (inputs * rstd).mul_(weight).to(inputs.dtype)


@fusible
def _scale_backward(
    gradient: torch.Tensor, inputs: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """With u = x / rms(x) and g = gradient * weight: dx = (g - u mean(g u)) / rms(x)."""
    unit = inputs * rstd  # in the statistics' dtype, which is fp32 at the least
    scaled = gradient * weight
    share = (scaled * unit).mean(-1, keepdim=True)
    return scaled.sub_(unit.mul_(share)).mul_(rstd).to(inputs.dtype)


class _Normalized(torch.autograd.Function):
    """A normalization on its own, which saves its input and statistics."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, norm: Prologue) -> torch.Tensor:
        output, statistics = norm.forward((inputs,))
        ctx.norm = norm
        ctx.save_for_backward(inputs, *statistics)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        inputs, *statistics = ctx.saved_tensors
        return *ctx.norm.backward(grad_outputs[0], (inputs,), tuple(statistics)), None


def normalize(inputs: torch.Tensor, norm: Prologue) -> torch.Tensor:
    """Return the normalized inputs [..., H]."""
    result: torch.Tensor = _Normalized.apply(inputs, norm)  # type: ignore[no-untyped-call]
    return result
