"""Rotary positions without saved tensors: the gradient of a rotation is the rotation back."""

from typing import Any

import torch

from lorafit.model.lean.fusion import fusible


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        # Shared by all layers, so that keeping them costs nothing.
        ctx.save_for_backward(cos, sin)
        return _rotate(heads, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotate_back(grad_outputs[0], cos, sin), None, None


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return heads [B, T, n, D] with their first d features rotated by angles [B, T, d].

    Feature j < d / 2 and feature j + d / 2 are the plane of angle j (RoFormer, arXiv 2104.09864, in
    the half-split layout of transformers); features from d on pass through.
    """
    angles = (cos.unsqueeze(2), sin.unsqueeze(2))
    result: torch.Tensor = _Rotation.apply(heads, *angles)  # type: ignore[no-untyped-call]
    return result


@fusible
def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    width = cos.shape[-1]
    half = width // 2
    first, second = heads[..., :half], heads[..., half:width]
    rotated = heads.clone(memory_format=torch.contiguous_format)
    rotated[..., :half].mul_(cos[..., :half]).addcmul_(second, sin[..., :half], value=-1)
    rotated[..., half:width].mul_(cos[..., half:]).addcmul_(first, sin[..., half:])
    return rotated


@fusible
def _rotate_back(gradient: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return the transpose of the rotation, applied to a gradient."""
    width = cos.shape[-1]
    half = width // 2
    first, second = gradient[..., :half], gradient[..., half:width]
    back = gradient.clone(memory_format=torch.contiguous_format)
    back[..., :half].mul_(cos[..., :half]).addcmul_(second, sin[..., half:])
    back[..., half:width].mul_(cos[..., half:]).addcmul_(first, sin[..., :half], value=-1)
    return back
