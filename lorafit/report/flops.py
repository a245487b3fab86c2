"""How much of the device's arithmetic a run uses."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.config.schema import Settings
from lorafit.hardware.catalog import CATALOG
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.memory.architecture import read_architecture

_PRODUCT_SIZE = 1024
_MEASURED_SECONDS = 0.2


@dataclass(frozen=True)
class StepFlops:
    """Floating point operations of a training step, by token."""

    per_token: float
    """Of the decoder layers, adapters and recomputation."""
    per_head_token: float
    """Of the output layer, for each token that it is computed for."""
    head_sees_all: bool
    """Whether the output layer is computed for every token, not only for those with a loss."""

    def of(self, tokens: int, supervised_tokens: int) -> float:
        """Return the operations of a step."""
        head_tokens = tokens if self.head_sees_all else supervised_tokens
        return tokens * self.per_token + head_tokens * self.per_head_token


def count_step_flops(
    settings: Settings, model_config: Mapping[str, Any], num_adapter_parameters: int
) -> StepFlops:
    """Return the operations of a LoRA step over a frozen base.

    A product takes 2 operations a weight and token forward, and 2 backward for the gradient of its
    inputs; the third term of full training (6 a weight, https://arxiv.org/abs/2001.08361, section
    2.1) is the gradient of the weights, which only adapters have. A checkpointed layer is computed
    forward once more. Attention's own products, which depend on the length, are left out.
    """
    arch = read_architecture(model_config)
    layers = arch.num_layers * arch.layer_linear_weights
    recomputed = 0.0
    if settings.gradient_checkpointing:
        count = settings.checkpointed_layers or arch.num_layers
        recomputed = 2.0 * min(count, arch.num_layers) * arch.layer_linear_weights
    return StepFlops(
        per_token=4.0 * layers + 6.0 * num_adapter_parameters + recomputed,
        per_head_token=4.0 * arch.embedding_parameters,
        head_sees_all=settings.kernels == "stock",
    )


def find_peak_flops(device: DeviceInfo, dtype: str) -> Choice[float] | None:
    """Return the operations a second that a device does at best, or None where that is unknown.

    GPUs by the catalog, in 16 bit only: how fast float32 products are depends on TF32. A CPU is
    measured, for a fifth of a second.
    """
    if device.kind == "cpu":
        return Choice(measure_product_flops(dtype), f"measured: products of {_PRODUCT_SIZE} rows")
    entry = CATALOG.get(device.catalog_key or "")
    if entry is None or (device.kind == "cuda" and dtype == "float32"):
        return None
    return Choice(entry.peak_matmul_flops, f"{entry.name}: the vendor's dense figure")


def measure_product_flops(dtype: str) -> float:
    """Return the operations a second of large matrix products on this CPU; draws nothing random."""
    import torch

    left = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=getattr(torch, dtype))
    operations = 2.0 * _PRODUCT_SIZE**3
    torch.mm(left, left)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < _MEASURED_SECONDS:
        before = time.perf_counter()
        torch.mm(left, left)
        best = max(best, operations / (time.perf_counter() - before))
    return best
