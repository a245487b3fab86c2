"""How the libraries underneath are brought to treat `meta` tensors as those of a GPU."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import _disable_current_modes

from lorafit.memory.tracer import StorageTracer


@contextlib.contextmanager
def bitsandbytes_on_meta(tracer: StorageTracer) -> Iterator[None]:
    """Let bitsandbytes work on `meta`, and leave nothing of it behind.

    Paged optimizers get their managed memory, which no allocator of torch has, and the tables of
    quantization that it keeps for the process are put back: on `meta` they have no numbers. Its
    4-bit weights, which DoRA copies, can be copied on a real device only.
    """
    from bitsandbytes import functional
    from bitsandbytes.nn import Params4bit

    def paged(*shape: int, dtype: torch.dtype = torch.float32, **_: Any) -> torch.Tensor:
        with _disable_current_modes():
            buffer: Any = torch.empty(shape, dtype=dtype, device="meta")
        tracer.exclude(buffer)
        buffer.is_paged, buffer.page_deviceid = True, 0
        result: torch.Tensor = buffer
        return result

    with (
        mock.patch.dict(functional.name2qmap, clear=True),
        mock.patch.object(functional, "get_paged", paged),
        mock.patch.object(functional, "prefetch_tensor", return_value=None),
        mock.patch.object(functional, "fill", return_value=None),
        mock.patch.object(Params4bit, "__deepcopy__", _copied_weight),
    ):
        yield


def _copied_weight(weight: Any, memo: dict[int, Any]) -> Any:
    """Copy 4-bit weights as bitsandbytes does: the numbers and the scales, not their module."""
    copied = torch.Tensor._make_subclass(type(weight), copy.deepcopy(weight.data), False)
    copied.__dict__.update(weight.__dict__, quant_state=copy.deepcopy(weight.quant_state))
    return copied


@contextlib.contextmanager
def grouped_kernels() -> Iterator[None]:
    """Let `meta` tensors take the grouped kernels that CUDA tensors take in optimizers."""
    with _allowed_on_meta("foreach"), fused_kernels():
        yield


@contextlib.contextmanager
def fused_kernels() -> Iterator[None]:
    """Let `meta` tensors take the fused optimizers, which every device has."""
    with _allowed_on_meta("fused"):
        yield


@contextlib.contextmanager
def _allowed_on_meta(kind: str) -> Iterator[None]:
    from torch.utils import _foreach_utils

    optimizer_module = sys.modules[torch.optim.Optimizer.__module__]
    name = f"_get_{kind}_kernels_supported_devices"
    devices = [*getattr(_foreach_utils, name)(), "meta"]
    with contextlib.ExitStack() as stack:
        for module in (_foreach_utils, optimizer_module):
            if hasattr(module, name):
                stack.enter_context(mock.patch.object(module, name, return_value=devices))
        yield
