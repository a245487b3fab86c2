"""Tracing a deep model by a few of its layers, exactly; by all of them where that cannot be."""

import copy
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorafit.config.schema import Settings
from lorafit.hardware.info import Choice
from lorafit.memory.events import Trace
from lorafit.memory.extrapolate import NotRepeatingError, extrapolate
from lorafit.memory.layer_choice import choose_layers, mark_ends_of_kinds
from lorafit.memory.layer_tracer import LayerTracer
from lorafit.memory.trace import TraceRequest, run_traced, trace_training
from lorafit.memory.trace_load import warm_up_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_KNOWN_TYPES = ("phi", "llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""Families whose layers differ by nothing but lists of the configuration, one entry a layer."""
_LAYERS_NAME = "model.layers"
_WORTHWHILE = 0.7
"""Share of the layers; where more of them must be traced, all are."""


def trace_quickly(request: TraceRequest) -> Choice[Trace]:
    """Return what `trace_training` returns, and how many layers were really traced."""
    kinds = _layer_kinds(request.config, request.settings)
    if not kinds:
        model_type = request.config.model_type
        reason = f"all layers were traced: those of {model_type} models are not known to repeat"
        return Choice(trace_training(request), reason)
    kept = choose_layers(kinds)
    if len(kept) > _WORTHWHILE * len(kinds):
        return Choice(trace_training(request), f"all {len(kinds)} layers were traced")
    try:
        trace = _extended(request, kinds, kept)
    except NotRepeatingError as difference:
        reason = f"all {len(kinds)} layers were traced: {difference}"
        return Choice(trace_training(request), reason)
    return Choice(trace, f"{len(kept)} of {len(kinds)} layers were traced, which the others repeat")


def trace_by_layers(request: TraceRequest) -> Trace:
    """Return what `trace_training` returns, from a few layers alone.

    Raises:
        NotRepeatingError: the layers are not known to repeat, or do not.
    """
    kinds = _layer_kinds(request.config, request.settings)
    if not kinds:
        raise NotRepeatingError(f"those of {request.config.model_type} models may differ")
    return _extended(request, kinds, choose_layers(kinds))


def _layer_kinds(config: "PretrainedConfig", settings: Settings) -> list[Hashable]:
    """Return what tells the layers apart; nothing where it is not known."""
    if config.model_type not in _KNOWN_TYPES:
        return []
    count = config.num_hidden_layers
    lists = [getattr(config, name) for name in _lists_by_layer(config)]
    limit = settings.checkpointed_layers if settings.gradient_checkpointing else 0
    num_checkpointed = count if limit is None else limit
    return mark_ends_of_kinds(
        [(index < num_checkpointed, *(values[index] for values in lists)) for index in range(count)]
    )


def _lists_by_layer(config: "PretrainedConfig") -> list[str]:
    count = config.num_hidden_layers
    values = config.to_dict()
    return [n for n, v in values.items() if isinstance(v, (list, tuple)) and len(v) == count]


def _extended(request: TraceRequest, kinds: list[Hashable], kept: list[int]) -> Trace:
    vocab_size = request.config.get_text_config().vocab_size
    tracer = LayerTracer("meta", request.gpu, vocab_size, _LAYERS_NAME)
    run_traced(_with_layers(request, kept), tracer)
    trace = extrapolate(tracer.layered, [kinds[index] for index in kept], kinds)
    if tracer.warm_up_storage is not None:
        # The small model's was asked for without a limit, so that it grows with the layers.
        total = trace.sizes[tracer.warm_up_storage]
        trace.sizes[tracer.warm_up_storage] = warm_up_bytes(total, request.capacity_bytes)
    return trace


def _with_layers(request: TraceRequest, kept: list[int]) -> TraceRequest:
    """Return the request for a model of these layers alone."""
    config: Any = copy.deepcopy(request.config)
    by_layer = {name: getattr(config, name) for name in _lists_by_layer(config)}
    config.num_hidden_layers = len(kept)
    for name, values in by_layer.items():
        setattr(config, name, [values[index] for index in kept])
    settings, limit = request.settings, request.settings.checkpointed_layers
    if limit is not None:
        count = sum(index < limit for index in kept)
        settings = settings.model_copy(update={"checkpointed_layers": count})
    return replace(request, config=config, settings=settings, capacity_bytes=None)
