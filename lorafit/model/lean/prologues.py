"""What happens to the input of a product: only what goes into it is kept.

A prologue is a normalization, an activation or a gate in front of one or several frozen products
that read the same value. It keeps its inputs, which are small or shared with others, in place of
its value.

Legend: [...] any leading dimensions, H features.
"""

from typing import Protocol

import torch

from lorafit.model.lean.activations import Activation
from lorafit.model.lean.fusion import fusible

Tensors = tuple[torch.Tensor, ...]


class Prologue(Protocol):
    """A differentiable function of frozen parameters, in front of products."""

    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the value [..., H] and the statistics that `restore` and `backward` take."""

    def restore(self, inputs: Tensors, statistics: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the value again, and the statistics for `backward`, maybe others than before."""

    def backward(self, gradient: torch.Tensor, inputs: Tensors, statistics: Tensors) -> Tensors:
        """Return the gradients of the inputs from that of the value, whose memory they may take."""


class Identity:
    """The input as it is."""

    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the input."""
        return inputs[0], ()

    def restore(self, inputs: Tensors, statistics: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return the input."""
        return self.forward(inputs)

    def backward(self, gradient: torch.Tensor, inputs: Tensors, statistics: Tensors) -> Tensors:
        """Return the gradient."""
        return (gradient,)


class Activated:
    """An activation of the inner layer, as in Phi's MLP."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return activation(inner)."""
        return self._activation.forward(inputs[0]), ()

    def restore(self, inputs: Tensors, statistics: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return activation(inner), with its derivative where that comes cheap."""
        found = self._activation.with_slope(inputs[0])
        return self.forward(inputs) if found is None else (found[0], found[1:])

    def backward(self, gradient: torch.Tensor, inputs: Tensors, statistics: Tensors) -> Tensors:
        """Return the gradient of the inner layer."""
        if statistics:
            return (gradient.mul_(statistics[0]),)
        return (self._activation.backward(gradient, inputs[0], in_place=True),)


class Gated:
    """activation(gate) * up, as in the MLP of Llama and its relatives (arXiv 2002.05202)."""

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return activation(gate) * up."""
        gate, up = inputs
        return _gate(gate, up, self._activation), ()

    def restore(self, inputs: Tensors, statistics: Tensors) -> tuple[torch.Tensor, Tensors]:
        """Return activation(gate) * up."""
        return self.forward(inputs)

    def backward(self, gradient: torch.Tensor, inputs: Tensors, statistics: Tensors) -> Tensors:
        """Return the gradients of gate and up."""
        gate, up = inputs
        return _gate_backward(gradient, gate, up, self._activation)


@fusible
def _gate(gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
    return activation.forward(gate).mul_(up)


@fusible
def _gate_backward(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, activation: Activation
) -> Tensors:
    of_up = activation.forward(gate).mul_(gradient)
    return activation.backward(gradient * up, gate), of_up
