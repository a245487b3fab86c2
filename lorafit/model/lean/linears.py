"""Frozen products with LoRA adapters that keep the input of a layer once.

PEFT's LoRA casts the input of every target to fp32 and keeps that copy, and with dropout a mask and
a dropped copy besides. Here all targets that read one value share one autograd node: it keeps what
its prologue was given, in the compute dtype, and the low-rank products.

Legend: N tokens, I input features, O output features, R rank, R+ the ranks of all targets together.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lorafit.model.lean.dropout import keep_mask
from lorafit.model.lean.products import (
    add_input_gradient,
    add_product,
    frozen_product,
    project,
    weight_gradient,
)
from lorafit.model.lean.prologues import Prologue, Tensors

ADAPTER = "default"
"""PEFT's name of the one adapter that a run has."""


class AdaptedLinear:
    """A frozen linear layer [O, I], with LoRA's A [R, I] and B [O, R] if it is a target.

    Args:
        module: a Linear module (bitsandbytes' included) or PEFT's LoRA layer around one.
    """

    def __init__(self, module: nn.Module) -> None:
        self.is_target = hasattr(module, "lora_A")
        self._module: Any = module

    @property
    def base(self) -> nn.Module:
        """The frozen layer."""
        base: nn.Module = self._module.base_layer if self.is_target else self._module
        return base

    @property
    def factors(self) -> Tensors:
        """A and B, or nothing."""
        if not self.is_target:
            return ()
        return self._module.lora_A[ADAPTER].weight, self._module.lora_B[ADAPTER].weight

    @property
    def dropout(self) -> float:
        """Share of A's inputs that is dropped now."""
        if not (self.is_target and self._module.training):
            return 0.0
        return float(getattr(self._module.lora_dropout[ADAPTER], "p", 0.0))

    @property
    def scale(self) -> float:
        """Factor of the update B A x."""
        return float(self._module.scaling[ADAPTER])

    @property
    def is_active(self) -> bool:
        """Whether its output is the sum of the frozen product and the update, if it has one."""
        return not self.is_target or not (self._module.disable_adapters or self._module.merged)


class _Update(NamedTuple):
    """The adapter of one target in one forward pass."""

    layer: int
    """Which of the products it belongs to."""
    columns: slice
    """Its place in the low-rank products [N, R+] of all targets."""
    scale: float
    """LoRA's scale times that of dropout."""
    dropout: float
    seed: int


class _AdaptedLinears(torch.autograd.Function):
    """A prologue, then frozen products with updates: [..., I] to one [..., O] a product."""

    @staticmethod
    def forward(
        ctx: Any,
        prologue: Prologue,
        linears: Sequence[AdaptedLinear],
        seeds: Sequence[int],
        num_inputs: int,
        *tensors: torch.Tensor,
    ) -> Any:
        inputs, factors = tensors[:num_inputs], tensors[num_inputs:]
        updates = _list_updates(linears, seeds)
        with without_autocast(inputs[0].device.type):
            value, statistics = prologue.forward(inputs)
            flat = value.flatten(0, -2)
            low = _low_rank(flat, updates, factors[::2])
            outputs = [frozen_product(layer.base, flat) for layer in linears]
            for update, b in zip(updates, factors[1::2], strict=True):
                add_product(outputs[update.layer], low[:, update.columns], b * update.scale)
        ctx.prologue, ctx.linears, ctx.updates = prologue, linears, updates
        ctx.num_inputs, ctx.num_factors = num_inputs, len(factors)
        ctx.save_for_backward(*inputs, *factors, low, *statistics)
        # Of no tokens at all, -1 would stand for no size.
        return tuple(output.view(*value.shape[:-1], output.shape[-1]) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        saved = ctx.saved_tensors
        inputs, rest = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
        factors, low, statistics = (
            rest[: ctx.num_factors],
            rest[ctx.num_factors],
            rest[ctx.num_factors + 1 :],
        )
        flat = [gradient.flatten(0, -2) for gradient in gradients]
        total = None
        if any(ctx.needs_input_grad[4 : 4 + ctx.num_inputs]):
            for layer, gradient in zip(ctx.linears, flat, strict=True):
                total = add_input_gradient(total, gradient, layer.base)
        of_factors: list[torch.Tensor] = []
        if ctx.updates:
            value, statistics = ctx.prologue.restore(inputs, statistics)
            value = value.flatten(0, -2)
            of_factors = _update_gradients(ctx.updates, factors, flat, low, value, total)
            del value
        of_inputs: tuple[torch.Tensor | None, ...] = (None,) * ctx.num_inputs
        if total is not None:
            shaped = total.view(*gradients[0].shape[:-1], total.shape[-1])
            of_inputs = ctx.prologue.backward(shaped, inputs, statistics)
        return None, None, None, None, *of_inputs, *of_factors


def _list_updates(linears: Sequence[AdaptedLinear], seeds: Sequence[int]) -> list[_Update]:
    updates: list[_Update] = []
    start = 0
    for index, layer in enumerate(linears):
        if layer.is_target:
            share, stop = layer.dropout, start + layer.factors[0].shape[0]
            scale = layer.scale / (1 - share)
            updates.append(_Update(index, slice(start, stop), scale, share, seeds[index]))
            start = stop
    return updates


def _low_rank(
    value: torch.Tensor, updates: Sequence[_Update], a_factors: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return A x for all targets, [N, R+]; one product unless dropout tells their inputs apart."""
    if not updates:
        return value.new_empty(0)
    if not any(update.dropout for update in updates):
        return project(value, _stacked(a_factors))
    low = a_factors[0].new_empty(value.shape[0], updates[-1].columns.stop)
    for update, a in zip(updates, a_factors, strict=True):
        mask = keep_mask(value, update.dropout, update.seed)
        low[:, update.columns] = project(value * mask, a)
        del mask
    return low


def _stacked(a_factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the A of all targets as one [R+, I]."""
    return torch.cat(tuple(a_factors)) if len(a_factors) > 1 else a_factors[0]


def _update_gradients(
    updates: Sequence[_Update],
    factors: Tensors,
    gradients: Sequence[torch.Tensor],
    low: torch.Tensor,
    value: torch.Tensor,
    total: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Return the gradients of A, B, A, B, ... and add the updates' part to that of the input.

    With y = W x + s B A (m x), m the mask of dropout and g the gradient of y:
    dB = s g (A m x)', dA = s B'g (m x)', dx += m (A' s B' g).

    Args:
        updates: the targets' adapters.
        factors: A, B, A, B, ...
        gradients: of each product's output, [N, O].
        low: what `_low_rank` returned, [N, R+].
        value: the products' input [N, I].
        total: the gradient of the input [N, I], changed in place; None where it is not wanted.
    """
    a_factors, b_factors = factors[::2], factors[1::2]
    high = torch.empty_like(low)  # s B' g
    of_b = []
    for update, b in zip(updates, b_factors, strict=True):
        gradient = gradients[update.layer]
        high[:, update.columns] = project(gradient, b.t() * update.scale)
        product = weight_gradient(low[:, update.columns], gradient)  # [R, O]
        of_b.append(product.t().contiguous().mul_(update.scale))
    if any(update.dropout for update in updates):
        of_a = [
            _dropped_gradient(update, a, high[:, update.columns], value, total)
            for update, a in zip(updates, a_factors, strict=True)
        ]
    else:
        product = weight_gradient(high, value)
        of_a = [product[update.columns] for update in updates]
        if total is not None:
            add_product(total, high, _stacked(a_factors).t())
    return [gradient for pair in zip(of_a, of_b, strict=True) for gradient in pair]


def _dropped_gradient(
    update: _Update,
    a: torch.Tensor,
    high: torch.Tensor,
    value: torch.Tensor,
    total: torch.Tensor | None,
) -> torch.Tensor:
    """Return the gradient of A behind dropout, and add the input's part to `total`."""
    mask = keep_mask(value, update.dropout, update.seed)
    of_a = weight_gradient(high, value * mask)
    if total is not None:
        part = torch.zeros_like(total)
        add_product(part, high, a.t())
        total.add_(part.mul_(mask))
    return of_a


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which products keep the dtype that they are given."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def adapted_linears(
    prologue: Prologue,
    linears: Sequence[AdaptedLinear],
    seeds: Sequence[int],
    *inputs: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Return the outputs [..., O] of several layers that read one value.

    Args:
        prologue: makes the value [..., I] from the inputs.
        linears: the layers.
        seeds: a seed of dropout for each of them.
        inputs: what the prologue takes.
    """
    factors = [factor for layer in linears for factor in layer.factors]
    outputs: tuple[torch.Tensor, ...] = _AdaptedLinears.apply(  # type: ignore[no-untyped-call]
        prologue, linears, seeds, len(inputs), *inputs, *factors
    )
    return outputs
