"""Putting lean layers into a model: one table of architectures, and what the others get.

A layer changes its class to one derived from its own, so that gradient checkpointing, FSDP's
wrapping and everything else that asks for the layer's class go on as before. Its modules and
weights stay where they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lorafit.config.schema import Settings
from lorafit.hardware.info import Choice
from lorafit.model.lean import layers
from lorafit.model.lean.activations import find_activation
from lorafit.model.lean.dropout import DropoutSeeds
from lorafit.model.lean.linears import ADAPTER, AdaptedLinear, adapted_linears
from lorafit.model.lean.prologues import Identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """How the layers of one architecture are made lean."""

    forward: Callable[..., Any]
    parts: Callable[[Any], layers.Parts | str]
    """Linear modules and prologues of a layer, or the reason why it stays as it is."""


_LLAMA = Architecture(layers.gated_forward, layers.gated_parts)

ARCHITECTURES: dict[str, Architecture] = {
    "phi": Architecture(layers.phi_forward, layers.phi_parts),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": Architecture(layers.gemma_forward, layers.gated_parts),
}
"""Model type of a decoder layer's configuration to its entry."""


def choose_lean_layers(base: "PreTrainedModel", settings: Settings) -> Choice[bool]:
    """Return whether the decoder layers of a model are lean as a whole, and why."""
    obstacle = why_not_lean(settings)
    if obstacle is not None:
        return Choice(False, f"transformers' and PEFT's own layers: {obstacle}")
    found = _find_parts(base)
    if isinstance(found, str):
        return Choice(False, f"lean adapters and activations in transformers' own layers: {found}")
    return Choice(True, "lean layers: they keep their inputs and compute the cheap rest again")


def install_lean_layers(base: "PreTrainedModel", settings: Settings) -> None:
    """Make the layers of a model with adapters lean; unknown ones get lean adapters alone."""
    if why_not_lean(settings) is not None:
        return
    seeds = DropoutSeeds()
    base.register_forward_pre_hook(lambda module, _: seeds.draw() if module.training else None)
    found = _find_parts(base)
    if isinstance(found, str):
        _install_in_modules(base, seeds)
        return
    for index, (layer, (linears, prologues)) in enumerate(found):
        is_last = index == len(found) - 1
        layer.lean = layers.LeanLayer(linears, prologues, index, seeds, is_last=is_last)
        layer.__class__ = _derive(type(layer), ARCHITECTURES[_model_type(layer)].forward)


def why_not_lean(settings: Settings) -> str | None:
    """Return which setting asks for the stock layers, or None."""
    if settings.kernels == "stock":
        return "kernels stock"
    if settings.use_dora:
        return "use_dora normalizes whole weights, which the lean layers do not"
    if settings.modules_to_save:
        return "modules_to_save trains modules that the lean layers take as frozen"
    return None


def _find_parts(base: "PreTrainedModel") -> list[tuple[Any, layers.Parts]] | str:
    """Return every decoder layer with its lean parts, or why they stay as they are."""
    from lorafit.model.build import decoder_layers

    decoders: list[Any] = list(decoder_layers(base))
    unknown = [name for name in map(_model_type, decoders) if name not in ARCHITECTURES]
    if unknown or not decoders:
        return f"{(unknown or [base.config.model_type])[0]} has no entry among the lean layers"
    found = []
    for layer in decoders:
        parts = ARCHITECTURES[_model_type(layer)].parts(layer)
        if isinstance(parts, str):
            return parts
        found.append((layer, parts))
    return found


def _model_type(layer: Any) -> str:
    config = getattr(getattr(layer, "self_attn", None), "config", None)
    return str(getattr(config, "model_type", type(layer).__name__))


_derived: dict[tuple[type, Callable[..., Any]], type] = {}


def _derive(stock: type, lean_forward: Callable[..., Any]) -> type:
    """Return a class of the same name whose forward is lean wherever it can be.

    Generation keeps a cache of keys and values, which the stock layer knows how to fill.
    """

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("past_key_values") is not None or not self.lean.is_active:
            return stock.forward(self, *arguments, **options)  # type: ignore[attr-defined]
        return lean_forward(self, *arguments, **options)

    key = (stock, lean_forward)
    if key not in _derived:
        body = {"forward": forward, "__module__": stock.__module__}
        _derived[key] = type(stock.__name__, (stock,), body)
    return _derived[key]


def _install_in_modules(base: "PreTrainedModel", seeds: DropoutSeeds) -> None:
    """Make each adapter and each known activation lean on its own."""
    from peft.tuners.lora import LoraLayer

    targets = [m for m in base.modules() if isinstance(m, LoraLayer) and _is_linear(m)]
    for index, module in enumerate(targets):
        target: Any = module
        target.lean = _LeanTarget(AdaptedLinear(target), index, seeds)
        target.__class__ = _derive_target(type(target))
    for module in base.modules():
        activation = find_activation(module)
        if activation is not None:
            # Instances alone: functions of torch that keep nothing but their input.
            module.forward = activation


def _is_linear(module: Any) -> bool:
    is_linear = isinstance(module.get_base_layer(), nn.Linear)
    return is_linear and not module.lora_variant and list(module.lora_A) == [ADAPTER]


class _LeanTarget:
    """One adapted module on its own."""

    def __init__(self, layer: AdaptedLinear, index: int, seeds: DropoutSeeds) -> None:
        self.layer = layer
        self._index = index
        self._seeds = seeds

    def __call__(self, inputs: Any) -> Any:
        seed = self._seeds.seed(self._index, 0)
        return adapted_linears(Identity(), (self.layer,), (seed,), inputs)[0]


_derived_targets: dict[type, type] = {}


def _derive_target(stock: type) -> type:
    def forward(self: Any, x: Any, *arguments: Any, **options: Any) -> Any:
        if arguments or options or not self.lean.layer.is_active:
            return stock.forward(self, x, *arguments, **options)  # type: ignore[attr-defined]
        return self.lean(x)

    if stock not in _derived_targets:
        body = {"forward": forward, "__module__": stock.__module__}
        _derived_targets[stock] = type(stock.__name__, (stock,), body)
    return _derived_targets[stock]
