"""Loading, as events: every weight in the order and with the scratch memory of from_pretrained.

The model is built on `meta` without a trace first; this then gives it its storages again, one
weight after the other, the way transformers does (core_model_loading.py,
`convert_and_load_state_dict_in_model`): names in natural order, each weight copied to the device
in its dtype, quantized there, and set. Before that transformers asks for the whole model's bytes
at once, and gives them back, so that most weights share one segment (`caching_allocator_warmup`).
"""

from typing import TYPE_CHECKING, Any

import torch

from lorafit.config.schema import Settings
from lorafit.memory.tracer import StorageTracer
from lorafit.units import GIB

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantize_structure(base: "PreTrainedModel", settings: Settings, dtype: torch.dtype) -> None:
    """Replace the Linear modules that quantization covers by bitsandbytes' modules, on `meta`."""
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    from lorafit.model.build import quantization_config

    replace_with_bnb_linear(
        base,
        modules_to_not_convert=get_keys_to_not_convert(base),
        quantization_config=quantization_config(settings, dtype),
    )
    base.is_loaded_in_4bit = settings.quantization == "nf4"
    base.is_loaded_in_8bit = settings.quantization == "int8"
    base.is_quantized = True


def load_empty(
    base: "PreTrainedModel",
    dtype: torch.dtype,
    device: torch.device,
    *,
    warm_up: bool = True,
    capacity_bytes: int | None = None,
    tracer: StorageTracer | None = None,
) -> None:
    """Give every weight and buffer of `base` a storage on `device`, in loading order.

    Args:
        base: the model on `meta`, its Linear modules already those of the quantization.
        dtype: the number format of the checkpoint on the device.
        device: `meta` under a tracer to predict, or a GPU to hold predictions against.
        warm_up: ask for all bytes at once first, as `from_pretrained` with a `device_map` does;
            without, weights are taken in the order of the modules, as by `model.to(device)`.
        capacity_bytes: memory of the device; the warm-up leaves 1.2 GiB of it.
        tracer: hears of each weight before it gets its storage.
    """
    names = [name for name, _ in base.named_parameters()]
    if warm_up:
        names.sort(key=_natural_key)
        sizes = {name: _loaded_bytes(base, name) for name in names}
        if tracer is not None:
            tracer.warm_up(sizes)
        num_halves = warm_up_bytes(sum(sizes.values()), capacity_bytes) // 2
        torch.empty(num_halves, dtype=torch.float16, device=device)
    for name in names:
        if tracer is not None:
            tracer.enter_module(name)
        _materialize(base, name, dtype, device)
    if tracer is not None:
        tracer.enter_module("")
    for module in base.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device=device)
    base.tie_weights()


def warm_up_bytes(total: int, capacity_bytes: int | None) -> int:
    """Return what transformers asks for ahead of loading weights of `total` bytes."""
    if capacity_bytes is not None:
        total = min(total, max(0, capacity_bytes - int(1.2 * GIB)))
    return total // 2 * 2


def _natural_key(name: str) -> tuple[tuple[int, Any], ...]:
    parts = name.split(".")
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def _loaded_bytes(base: "PreTrainedModel", name: str) -> int:
    """Return the bytes that the warm-up counts for a weight."""
    module, weight = _locate(base, name)
    parameter: torch.Tensor = getattr(module, weight)
    kind = type(parameter).__name__
    if kind == "Params4bit":
        return parameter.numel() // 2
    if kind == "Int8Params":
        return parameter.numel()
    return parameter.numel() * parameter.element_size()


def _locate(base: "PreTrainedModel", name: str) -> tuple[torch.nn.Module, str]:
    path, _, weight = name.rpartition(".")
    return base.get_submodule(path), weight


def _materialize(
    base: "PreTrainedModel", name: str, dtype: torch.dtype, device: torch.device
) -> None:
    module, weight = _locate(base, name)
    old = module._parameters[weight]
    assert old is not None, "named_parameters yields only parameters that are there"
    kind = type(old).__name__
    if kind == "Params4bit":
        value = torch.empty(old.shape, dtype=dtype, device=device)
        options = dict(old.__dict__)
        quantized: Any = type(old)(value, requires_grad=False, **options)
        quantized._quantize(device)
        quantized.module = module
        module.quant_state = quantized.quant_state
        module._parameters[weight] = quantized
    elif kind == "Int8Params":
        module._parameters[weight] = _quantize_int8(old, device)
    else:
        value = torch.empty(old.shape, dtype=old.dtype, device=device)
        module._parameters[weight] = torch.nn.Parameter(value, requires_grad=False)


def _quantize_int8(old: Any, device: torch.device) -> torch.nn.Parameter:
    options = {key: value for key, value in old.__dict__.items() if key != "SCB"}
    # transformers brings the weight to the device, back to the host, and to the device again.
    torch.empty(old.shape, dtype=torch.float16, device=device)
    value = torch.empty(old.shape, dtype=torch.float16, device=device)
    quantized: Any = type(old)(value, requires_grad=False, **options)
    quantized._quantize(device)
    result: torch.nn.Parameter = quantized
    return result
