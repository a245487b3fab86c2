"""Activations that are computed again in backward, so that only their input is kept.

Legend: N tokens, F features of the inner layer.
"""

import math
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from lorafit.model.lean.products import device_type

_aten = torch.ops.aten


class Activation(Protocol):
    """An elementwise function and its gradient."""

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the function of inputs [N, F], differentiable."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the same in the quickest way, for a caller who has `backward`."""

    def with_slope(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the function and its derivative, where together they beat `backward`."""

    def backward(
        self, gradient: torch.Tensor, inputs: torch.Tensor, *, in_place: bool = False
    ) -> torch.Tensor:
        """Return the gradient of the inputs from that of the value, or put it in its place."""


class Gelu:
    """x Phi(x), exactly or by the tanh approximation (arXiv 1606.08415)."""

    def __init__(self, approximate: str) -> None:
        self._approximate = approximate

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return GELU."""
        return functional.gelu(inputs, approximate=self._approximate)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return GELU; on a CPU the tanh, which is slow there, as the sigmoid that it is."""
        return _gelu_by_sigmoid(inputs) if self._goes_by_sigmoid(inputs) else self(inputs)

    def with_slope(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return GELU and its derivative on a CPU, where they share the sigmoid."""
        return _gelu_with_slope(inputs) if self._goes_by_sigmoid(inputs) else None

    def _goes_by_sigmoid(self, inputs: torch.Tensor) -> bool:
        # Rounded to 16 bit between its operations, it would be less exact than PyTorch's.
        is_wide = inputs.dtype in (torch.float32, torch.float64)
        return self._approximate == "tanh" and is_wide and device_type(inputs) == "cpu"

    def backward(
        self, gradient: torch.Tensor, inputs: torch.Tensor, *, in_place: bool = False
    ) -> torch.Tensor:
        """Return PyTorch's own gradient."""
        kind = self._approximate
        if not in_place:
            result: torch.Tensor = _aten.gelu_backward(gradient, inputs, approximate=kind)
            return result
        _aten.gelu_backward.grad_input(gradient, inputs, approximate=kind, grad_input=gradient)
        return gradient


_SLOPE = 2 * math.sqrt(2 / math.pi)
_CUBE = 0.044715


def _gelu_by_sigmoid(inputs: torch.Tensor) -> torch.Tensor:
    """Return x sigmoid(2 z), which is x (1 + tanh z) / 2, z = sqrt(2 / pi) (x + 0.044715 x^3)."""
    twice = inputs * inputs
    return twice.mul_(_SLOPE * _CUBE).add_(_SLOPE).mul_(inputs).sigmoid_().mul_(inputs)


_CACHED = 1 << 17
"""Numbers that go through all operations of a function together, while a CPU's cache has them."""


def _gelu_with_slope(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x s and its derivative s + 2 z' (1 - s) x s, with s = sigmoid(2 z) as above."""
    value, slope = torch.empty_like(inputs), torch.empty_like(inputs)
    rows = max(1, _CACHED // inputs.shape[-1])
    parts = (torch.split(each.flatten(0, -2), rows) for each in (inputs, value, slope))
    for x, y, s in zip(*parts, strict=True):
        square = x * x
        torch.mul(square, _SLOPE * _CUBE, out=s).add_(_SLOPE).mul_(x).sigmoid_()
        torch.mul(x, s, out=y)
        inner = square.mul_(3 * _SLOPE * _CUBE).add_(_SLOPE)
        s.addcmul_(inner.addcmul_(inner, s, value=-1), y)
    return value, slope


class Silu:
    """x sigmoid(x)."""

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return SiLU."""
        return functional.silu(inputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return SiLU."""
        return self(inputs)

    def with_slope(self, inputs: torch.Tensor) -> None:
        """Return nothing: PyTorch has quick ones on every device."""

    def backward(
        self, gradient: torch.Tensor, inputs: torch.Tensor, *, in_place: bool = False
    ) -> torch.Tensor:
        """Return PyTorch's own gradient."""
        if not in_place:
            result: torch.Tensor = _aten.silu_backward(gradient, inputs)
            return result
        _aten.silu_backward.grad_input(gradient, inputs, grad_input=gradient)
        return gradient


# transformers writes GELU in several ways; these compute one and the same function.
_BY_CLASS: dict[str, Activation] = {
    "NewGELUActivation": Gelu("tanh"),
    "GELUTanh": Gelu("tanh"),
    "PytorchGELUTanh": Gelu("tanh"),
    "FastGELUActivation": Gelu("tanh"),
    "GELUActivation": Gelu("none"),
    "SiLUActivation": Silu(),
    "SiLU": Silu(),
}


def find_activation(module: nn.Module) -> Activation | None:
    """Return the function of an activation module, or None if it is not one of those known."""
    if isinstance(module, nn.GELU):
        return Gelu(module.approximate)
    return _BY_CLASS.get(type(module).__name__)
