"""Scratch memory of an operator: how a row of the tables describes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lorafit.memory.gpu import GpuTraits

Sizes = list[int]
"""Bytes of buffers, in the order in which they are taken."""


@dataclass(frozen=True)
class Call:
    """One call of an operator, with its outputs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    gpu_or_none: GpuTraits | None

    @property
    def gpu(self) -> GpuTraits:
        """The GPU that runs it; rows of the table for every device do not ask."""
        assert self.gpu_or_none is not None, "only a GPU has this scratch memory"
        return self.gpu_or_none


@dataclass(frozen=True)
class Scratch:
    """A row of the table."""

    source: str
    """Where the formula comes from."""
    before: Callable[[Call], Sizes] | None = None
    """Buffers taken before the outputs exist."""
    after: Callable[[Call], Sizes] | None = None
    """Buffers taken once the outputs exist."""
    on_every_device: bool = False
    """The operator is composed of others, below where a trace can see, on CUDA and elsewhere."""


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of a contiguous copy of a tensor."""
    return tensor.numel() * tensor.element_size()


def copy_unless_contiguous(*tensors: torch.Tensor) -> Sizes:
    """Return the bytes of the copies that a kernel makes of tensors that lie otherwise."""
    return [tensor_bytes(tensor) for tensor in tensors if not tensor.is_contiguous()]
