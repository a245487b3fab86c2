"""The forward pass of a decoder layer, an architecture at a time, made of lean parts.

Each function takes the place of the layer's own `forward` and computes the same. What it needs of
the layer is gathered once, in `LeanLayer`.

Legend: B rows, T tokens, H hidden size, n heads, D head size.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lorafit.model.lean.activations import find_activation
from lorafit.model.lean.dropout import DropoutSeeds, dropped_sum
from lorafit.model.lean.linears import AdaptedLinear, adapted_linears
from lorafit.model.lean.norms import LayerNorm, RMSNorm, normalize
from lorafit.model.lean.prologues import Activated, Gated, Identity, Prologue
from lorafit.model.lean.rotary import rotate

Parts = tuple[dict[str, nn.Module], dict[str, Prologue]]
"""Linear modules of a layer, and what happens in front of products, both by name."""


class LeanLayer:
    """The lean parts of one decoder layer.

    Args:
        linears: the layer's linear modules by name.
        prologues: what happens in front of products, by a name of the architecture's own.
        index: number of the layer.
        seeds: where dropout's seeds come from.
        is_last: whether nothing but the loss reads what it returns.
    """

    def __init__(
        self,
        linears: dict[str, nn.Module],
        prologues: dict[str, Prologue],
        index: int,
        seeds: DropoutSeeds,
        *,
        is_last: bool = False,
    ) -> None:
        self._linears = {name: AdaptedLinear(module) for name, module in linears.items()}
        self._places = {name: place for place, name in enumerate(linears)}
        self.prologues = prologues
        self._index = index
        self._seeds = seeds
        self._is_last = is_last

    @property
    def is_active(self) -> bool:
        """Whether every adapter is applied as an update of its own, neither merged nor off."""
        return all(layer.is_active for layer in self._linears.values())

    def products(
        self, prologue: str, names: Sequence[str], *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the outputs [B, T, O] of the named linear layers behind a prologue."""
        layers = [self._linears[name] for name in names]
        seeds = [self._seeds.seed(self._index, self._places[name]) for name in names]
        return adapted_linears(self.prologues[prologue], layers, seeds, *inputs)

    def positions_read(self, options: Mapping[str, Any]) -> torch.Tensor | None:
        """Return which tokens are read behind this layer, flat in [B, T], or None for all.

        What the last layer does behind attention is of use only where the loss reads it: those
        tokens are the option `read_positions`, int64 [N]. With it that layer returns [1, N, H].
        """
        return options.get("read_positions") if self._is_last else None

    def dropout_seeds(self, count: int) -> tuple[int, ...]:
        """Return seeds for dropout outside of the adapters."""
        first = len(self._places)
        return tuple(self._seeds.seed(self._index, first + place) for place in range(count))


def phi_parts(layer: Any) -> Parts | str:
    """Return linear modules and prologues of a Phi layer, or why it stays as it is."""
    attention, mlp = layer.self_attn, layer.mlp
    activation = find_activation(mlp.activation_fn)
    if activation is None:
        return f"its activation is {type(mlp.activation_fn).__name__}"
    if attention.qk_layernorm:
        return "it normalizes queries and keys"
    names = ("q_proj", "k_proj", "v_proj", "dense")
    linears = {name: getattr(attention, name) for name in names}
    linears |= {"fc1": mlp.fc1, "fc2": mlp.fc2}
    norm = LayerNorm(layer.input_layernorm)
    return linears, {"norm": norm, "plain": Identity(), "activation": Activated(activation)}


def phi_forward(
    layer: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: Any = None,
    **options: Any,
) -> torch.Tensor:
    """Attention and MLP side by side behind one LayerNorm: [B, T, H] to [B, T, H]."""
    lean: LeanLayer = layer.lean
    positions = lean.positions_read(options)
    early = ("fc1",) if positions is None else ()
    query, key, value, *inner = lean.products(
        "norm", ("q_proj", "k_proj", "v_proj", *early), hidden_states
    )
    heads = attend(
        layer.self_attn, (query, key, value), position_embeddings, attention_mask, options
    )
    del query, key, value
    if positions is not None:
        hidden_states, heads = take_tokens(positions, hidden_states, heads)
        inner = [*lean.products("norm", ("fc1",), hidden_states)]
    (attended,) = lean.products("plain", ("dense",), heads)
    (computed,) = lean.products("activation", ("fc2",), *inner)
    share = layer.resid_dropout.p if layer.training else 0.0
    return dropped_sum(hidden_states, (attended, computed), share, lean.dropout_seeds(2))


def gated_parts(layer: Any) -> Parts | str:
    """Return linear modules and prologues of a Llama-like layer, or why it stays as it is."""
    attention, mlp = layer.self_attn, layer.mlp
    activation = find_activation(mlp.act_fn)
    if activation is None:
        return f"its activation is {type(mlp.act_fn).__name__}"
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    linears = {name: getattr(attention, name) for name in names}
    linears |= {name: getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")}
    prologues: dict[str, Prologue] = {"plain": Identity(), "gate": Gated(activation)}
    norms = {name: getattr(layer, name) for name in _NORMS if hasattr(layer, name)}
    norms |= {name: getattr(attention, name) for name in _HEAD_NORMS if hasattr(attention, name)}
    return linears, prologues | {name: _rms_norm(module) for name, module in norms.items()}


_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_HEAD_NORMS = ("q_norm", "k_norm")


def _rms_norm(module: Any) -> RMSNorm:
    if hasattr(module, "variance_epsilon"):
        return RMSNorm(module, module.variance_epsilon)
    return RMSNorm(module, module.eps, offset=1.0)  # Gemma


def gated_forward(
    layer: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: Any = None,
    **options: Any,
) -> torch.Tensor:
    """Attention, then a gated MLP, each behind an RMSNorm: [B, T, H] to [B, T, H]."""
    lean: LeanLayer = layer.lean
    hidden_states, attended = _gated_attention(
        layer, hidden_states, position_embeddings, attention_mask, options
    )
    hidden_states = hidden_states + attended
    return hidden_states + _gated_mlp(lean, "post_attention_layernorm", hidden_states)


def gemma_forward(
    layer: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: Any = None,
    **options: Any,
) -> torch.Tensor:
    """Attention, then a gated MLP, each between two RMSNorms: [B, T, H] to [B, T, H]."""
    lean: LeanLayer = layer.lean
    hidden_states, attended = _gated_attention(
        layer, hidden_states, position_embeddings, attention_mask, options
    )
    norm = lean.prologues["post_attention_layernorm"]
    hidden_states = hidden_states + normalize(attended, norm)
    computed = _gated_mlp(lean, "pre_feedforward_layernorm", hidden_states)
    return hidden_states + normalize(computed, lean.prologues["post_feedforward_layernorm"])


def _gated_attention(
    layer: Any, hidden_states: torch.Tensor, angles: Any, mask: Any, options: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the layer's input and what attention adds to it, of the tokens that are read."""
    lean: LeanLayer = layer.lean
    projected = lean.products("input_layernorm", ("q_proj", "k_proj", "v_proj"), hidden_states)
    query_norm, key_norm = (lean.prologues.get(name) for name in _HEAD_NORMS)
    heads = attend(layer.self_attn, projected, angles, mask, options, (query_norm, key_norm))
    positions = lean.positions_read(options)
    if positions is not None:
        hidden_states, heads = take_tokens(positions, hidden_states, heads)
    return hidden_states, lean.products("plain", ("o_proj",), heads)[0]


def _gated_mlp(lean: LeanLayer, norm: str, hidden_states: torch.Tensor) -> torch.Tensor:
    gate, up = lean.products(norm, ("gate_proj", "up_proj"), hidden_states)
    return lean.products("gate", ("down_proj",), gate, up)[0]


def attend(
    attention: Any,
    projected: Sequence[torch.Tensor],
    angles: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    options: dict[str, Any],
    head_norms: tuple[Prologue | None, Prologue | None] = (None, None),
) -> torch.Tensor:
    """Rotate queries and keys and run the attention that the model is set to.

    Args:
        attention: transformers' attention module.
        projected: queries, keys and values, each [B, T, n D].
        angles: cosines and sines [B, T, d].
        mask: as transformers makes it.
        options: what the layer was called with besides, for the attention function.
        head_norms: normalizations of the queries' and the keys' heads.

    Returns:
        The heads' outputs, [B, T, n D].
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    query, key, value = (
        tensor.view(*tensor.shape[:2], -1, attention.head_dim) for tensor in projected
    )  # [B, T, n, D]
    query_norm, key_norm = head_norms
    if query_norm is not None and key_norm is not None:
        query, key = normalize(query, query_norm), normalize(key, key_norm)
    query, key = rotate(query, *angles), rotate(key, *angles)
    own = sys.modules[type(attention).__module__].eager_attention_forward
    run = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, own)
    output: torch.Tensor = run(
        attention,
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        mask,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        sliding_window=_sliding_window(attention),
        **{name: option for name, option in options.items() if name not in _LAYER_OPTIONS},
    )[0]
    return output.flatten(2)


_LAYER_OPTIONS = ("past_key_values", "use_cache", "read_positions")


def take_tokens(positions: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tokens at flat positions [N] of tensors [B, T, H], each as [1, N, H]."""
    return tuple(each.flatten(0, 1).index_select(0, positions)[None] for each in tensors)


def _sliding_window(attention: Any) -> int | None:
    """Return how many tokens back a query sees, or None for all."""
    if hasattr(attention, "sliding_window"):
        window: int | None = attention.sliding_window
        return window
    return getattr(attention.config, "sliding_window", None)
