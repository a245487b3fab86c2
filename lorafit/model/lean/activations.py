"""Activations that are computed again in backward, so that only their input is kept.

Legend: N tokens, F features of the inner layer.
"""

from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

_aten = torch.ops.aten


class Activation(Protocol):
    """An elementwise function and its gradient."""

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the function of inputs [N, F]."""

    def backward(self, gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the inputs from that of the function's value."""


class Gelu:
    """x Phi(x), exactly or by the tanh approximation (arXiv 1606.08415)."""

    def __init__(self, approximate: str) -> None:
        self._approximate = approximate

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return GELU."""
        return functional.gelu(inputs, approximate=self._approximate)

    def backward(self, gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return PyTorch's own gradient."""
        result: torch.Tensor = _aten.gelu_backward(gradient, inputs, approximate=self._approximate)
        return result


class Silu:
    """x sigmoid(x)."""

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return SiLU."""
        return functional.silu(inputs)

    def backward(self, gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return PyTorch's own gradient."""
        result: torch.Tensor = _aten.silu_backward(gradient, inputs)
        return result


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
