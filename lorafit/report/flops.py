"""How much of the device's arithmetic a run uses."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
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
    per_squared_token: float = 0.0
    """Of attention's own products, for each square of a row's tokens."""

    def of(self, tokens: float, supervised_tokens: float, squared_tokens: float = 0.0) -> float:
        """Return the operations of a step; `squared_tokens` sums its rows' squared lengths."""
        head_tokens = tokens if self.head_sees_all else supervised_tokens
        products = tokens * self.per_token + head_tokens * self.per_head_token
        return products + squared_tokens * self.per_squared_token


def count_step_flops(
    settings: Settings, model_config: Mapping[str, Any], num_adapter_parameters: int
) -> StepFlops:
    """Return the operations of a LoRA step over a frozen base.

    A product takes 2 operations a weight and token forward, and 2 backward for the gradient of its
    inputs; the third term of full training (6 a weight, https://arxiv.org/abs/2001.08361, section
    2.1) is the gradient of the weights, which only adapters have. A checkpointed layer is computed
    forward once more.

    Attention multiplies queries with keys and weights with values: 2 x 2 x length x width a token,
    of which the causal mask spares half; backward has gradients for both factors.
    """
    arch = read_architecture(model_config)
    again = num_checkpointed_layers(settings, arch.num_layers)
    return StepFlops(
        per_token=(4.0 * arch.num_layers + 2.0 * again) * arch.layer_linear_weights
        + 6.0 * num_adapter_parameters,
        per_head_token=4.0 * arch.embedding_parameters,
        head_sees_all=settings.kernels == "stock",
        per_squared_token=2.0 * (3 * arch.num_layers + again) * arch.query_size,
    )


def count_forward_flops(
    settings: Settings, model_config: Mapping[str, Any], num_adapter_parameters: int
) -> StepFlops:
    """Return the operations of a forward pass alone, as validation runs it."""
    arch = read_architecture(model_config)
    return StepFlops(
        per_token=2.0 * arch.num_layers * arch.layer_linear_weights + 2.0 * num_adapter_parameters,
        per_head_token=2.0 * arch.embedding_parameters,
        head_sees_all=settings.kernels == "stock",
        per_squared_token=2.0 * arch.num_layers * arch.query_size,
    )


def num_checkpointed_layers(settings: Settings, num_layers: int) -> int:
    """Return how many layers are computed forward a second time."""
    if not settings.gradient_checkpointing:
        return 0
    return min(settings.checkpointed_layers or num_layers, num_layers)


def find_peak_flops(device: DeviceInfo, dtype: str) -> Choice[float] | None:
    """Return the operations a second that a device does at best, or None where that is unknown.

    GPUs by the catalog, in 16 bit only: how fast float32 products are depends on TF32. A CPU is
    measured, for a fifth of a second.
    """
    if device.kind == "cpu":
        return Choice(measured_product_flops(dtype), f"measured: products of {_PRODUCT_SIZE} rows")
    entry = CATALOG.get(device.catalog_key or "")
    if entry is None or (device.kind == "cuda" and dtype == "float32"):
        return None
    return Choice(entry.peak_matmul_flops, f"{entry.name}: the vendor's dense figure")


@cache
def measured_product_flops(dtype: str) -> float:
    """Return `measure_product_flops`, measured once a process."""
    return measure_product_flops(dtype)


def measure_product_flops(dtype: str) -> float:
    """Return the operations a second of large matrix products on this CPU; draws nothing random.

    In float32 by the faster of the libraries that PyTorch carries: training takes that one, see
    `model/lean/cpu_products`.
    """
    import torch

    from lorafit.model.lean.cpu_products import has_onednn
    from lorafit.model.lean.products import onednn_product

    left = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=getattr(torch, dtype))
    products: list[Callable[[], object]] = [lambda: torch.mm(left, left)]
    if dtype == "float32" and has_onednn():
        products.append(lambda: onednn_product(left, left, None))
    return max(map(_measure, products))


def _measure(product: Callable[[], object]) -> float:
    product()
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _MEASURED_SECONDS / 2:
        before = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - before)
    return 2.0 * _PRODUCT_SIZE**3 / best
