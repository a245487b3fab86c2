"""Dropout that keeps no mask: it is drawn again in backward, from the same seed.

PyTorch's dropout stores a mask and a scaled copy of its input for each module; PEFT has one such
module a target. Here a mask lives only while it is applied. Masks are independent between targets,
as PEFT's are.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from lorafit.model.lean.products import device_type

_RESOLUTION = 1 << 16
"""A number of 16 random bits decides over an element: four a 64-bit draw, and a share exact to
1 / 65536."""


class DropoutSeeds:
    """Where the seeds of one model's masks come from.

    One number is drawn from torch's generator on the CPU at the start of each forward pass, which
    no device has to wait for; a mask's seed follows from it and from the place of the mask. A layer
    that is computed again in backward finds the same numbers, however generators have moved since.
    """

    def __init__(self) -> None:
        self._base = 0

    def draw(self) -> None:
        """Begin a forward pass."""
        with _disable_current_modes():  # a number of the program's, not one of the model's tensors
            self._base = int(torch.randint(1 << 62, (), dtype=torch.int64))

    def seed(self, layer: int, place: int) -> int:
        """Return the seed of a mask: the layer's number and the place of the mask in it."""
        # splitmix64's increment (Steele et al., 2014) keeps neighbouring places apart.
        return (self._base ^ ((layer * 64 + place + 1) * 0x9E3779B97F4A7C15)) & (2**63 - 1)


def keep_mask(values: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Return a bool mask of the shape of `values`, False for about a `share` of it."""
    generator = _seeded(values.device, seed)
    if device_type(values) == "mps":  # Metal draws no 64-bit integers
        drawn = torch.empty_like(values, dtype=torch.float32)
        return drawn.uniform_(generator=generator) >= share
    count = values.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=values.device)
    bits.random_(-(2**63), None, generator=generator)
    threshold = round(share * _RESOLUTION) - _RESOLUTION // 2
    return (bits.view(torch.int16)[:count] >= threshold).view(values.shape)


def _seeded(device: torch.device, seed: int) -> torch.Generator | None:
    if device.type == "meta":  # where nothing can be seeded, and nothing has to be
        return None
    generator = torch.Generator(device=device)
    generator.manual_seed(seed)
    return generator


class _DroppedSum(torch.autograd.Function):
    """A residual plus branches, each with dropout of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        share: float,
        seeds: tuple[int, ...],
        residual: torch.Tensor,
        *branches: torch.Tensor,
    ) -> torch.Tensor:
        ctx.share, ctx.seeds = share, seeds
        total = residual.clone()
        for branch, seed in zip(branches, seeds, strict=True):
            kept = branch * keep_mask(branch, share, seed)
            total.add_(kept, alpha=1 / (1 - share))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (gradient,) = grad_outputs
        scaled = gradient / (1 - ctx.share)
        return (
            None,
            None,
            gradient,
            *(scaled * keep_mask(scaled, ctx.share, seed) for seed in ctx.seeds),
        )


def dropped_sum(
    residual: torch.Tensor, branches: tuple[torch.Tensor, ...], share: float, seeds: tuple[int, ...]
) -> torch.Tensor:
    """Return residual [B, T, H] plus branches of that shape, each with dropout of `share`."""
    if share == 0:
        # The small ones first: what the residual's size rounds away, it does once.
        return sum(branches[1:], start=branches[0]) + residual
    total: torch.Tensor = _DroppedSum.apply(  # type: ignore[no-untyped-call]
        share, seeds, residual, *branches
    )
    return total
