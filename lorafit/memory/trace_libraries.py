"""How the libraries underneath are brought to treat `meta` tensors as those of a GPU."""

import contextlib
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
    quantization that it keeps for the process are put back: on `meta` they have no numbers.
    """
    from bitsandbytes import functional

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
    ):
        yield


@contextlib.contextmanager
def grouped_kernels() -> Iterator[None]:
    """Let `meta` tensors take the grouped kernels that CUDA tensors take in optimizers."""
    from torch.utils import _foreach_utils

    optimizer_module = sys.modules[torch.optim.Optimizer.__module__]
    foreach = [*_foreach_utils._get_foreach_kernels_supported_devices(), "meta"]
    fused = [*_foreach_utils._get_fused_kernels_supported_devices(), "meta"]
    with contextlib.ExitStack() as stack:
        for module in (_foreach_utils, optimizer_module):
            for name, devices in (
                ("_get_foreach_kernels_supported_devices", foreach),
                ("_get_fused_kernels_supported_devices", fused),
            ):
                if hasattr(module, name):
                    stack.enter_context(
                        mock.patch.object(module, name, lambda devices=devices: devices)
                    )
        yield
