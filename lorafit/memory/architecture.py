"""The shape of a decoder model, read from its config.json alone: enough to count and to plan.

Known families are counted exactly: phi, llama, mistral, qwen2, qwen3, gemma3. Any other model is
taken for a llama with its dimensions, which most decoder models resemble.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lorafit.errors import ModelError


class Linear(NamedTuple):
    """A matrix product of a decoder layer."""

    name: str
    num_inputs: int
    num_outputs: int
    has_bias: bool

    @property
    def num_weights(self) -> int:
        """Entries of the matrix, without the bias."""
        return self.num_inputs * self.num_outputs


@dataclass(frozen=True)
class Architecture:
    """A decoder model: sizes, products and norms of a layer, what surrounds the layers."""

    model_type: str
    is_known: bool
    """False where the family has no entry and is taken for a llama."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    is_gated: bool
    """The MLP multiplies an activated gate with a second projection."""
    activation: str
    is_parallel: bool
    """Attention and MLP read one norm's output and are added together (phi)."""
    has_layer_norm: bool
    """LayerNorm with bias; otherwise RMSNorm, which computes in fp32."""
    num_norms: int
    """Norms of the hidden size in a layer."""
    has_query_key_norm: bool
    residual_dropout: float
    ties_embeddings: bool
    head_has_bias: bool
    sliding_window: int | None
    linears: tuple[Linear, ...]
    """In the order of the forward pass."""
    vision_linear_weights: int = 0
    """Entries of the matrices of an image encoder, which lies in memory and is not run."""
    vision_other_parameters: int = 0

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads together; the values' is the same."""
        return self.num_key_value_heads * self.head_dim

    @property
    def layer_linear_weights(self) -> int:
        """Entries of the matrices of a layer: what quantization shrinks and products read."""
        return sum(linear.num_weights for linear in self.linears)

    @property
    def layer_other_parameters(self) -> int:
        """Biases and norms of a layer."""
        biases = sum(linear.num_outputs for linear in self.linears if linear.has_bias)
        norms = self.num_norms * self.hidden_size * (2 if self.has_layer_norm else 1)
        return biases + norms + (2 * self.head_dim if self.has_query_key_norm else 0)

    @property
    def linear_weights(self) -> int:
        """Entries of all matrices that quantization shrinks."""
        return self.num_layers * self.layer_linear_weights + self.vision_linear_weights

    @property
    def embedding_parameters(self) -> int:
        """Entries of the token embedding, which are the output layer's too where they are tied."""
        return self.vocab_size * self.hidden_size

    @property
    def other_parameters(self) -> int:
        """Everything outside of the layers' matrices: embedding, output layer, norms, biases."""
        head = 0 if self.ties_embeddings else self.embedding_parameters
        head += self.vocab_size if self.head_has_bias else 0
        final_norm = self.hidden_size * (2 if self.has_layer_norm else 1)
        layers = self.num_layers * self.layer_other_parameters
        return self.embedding_parameters + head + final_norm + layers + self.vision_other_parameters

    @property
    def num_parameters(self) -> int:
        """All parameters, as `model.num_parameters()` counts them."""
        return self.linear_weights + self.other_parameters


@dataclass(frozen=True)
class _Family:
    """What config.json leaves to the code of a model type, and the defaults of its class."""

    is_gated: bool = True
    is_parallel: bool = False
    has_layer_norm: bool = False
    num_norms: int = 2
    has_query_key_norm: bool = False
    qkv_bias: bool | None = False
    """None: as config.json's attention_bias says, for the output projection too."""
    all_biases: bool = False
    ties_embeddings: bool = False
    head_has_bias: bool = False
    activation: str = "silu"
    residual_dropout: float = 0.0
    head_dim: int | None = None
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")


_LLAMA = _Family(qkv_bias=None)
_GEMMA3 = _Family(
    num_norms=4,
    has_query_key_norm=True,
    qkv_bias=None,
    ties_embeddings=True,
    activation="gelu_pytorch_tanh",
    head_dim=256,
)
_FAMILIES: dict[str, _Family] = {
    "phi": _Family(
        is_gated=False,
        is_parallel=True,
        has_layer_norm=True,
        num_norms=1,
        all_biases=True,
        head_has_bias=True,
        activation="gelu_new",
        names=("q_proj", "k_proj", "v_proj", "dense"),
        mlp_names=("fc1", "fc2"),
    ),
    "llama": _LLAMA,
    "mistral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(has_query_key_norm=True, qkv_bias=None, head_dim=128),
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
}
# Names that older configurations have for the same sizes.
_ALIASES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "num_layers"),
    "num_attention_heads": ("n_head", "num_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
}


def read_architecture(model_config: Mapping[str, Any]) -> Architecture:
    """Return the architecture that a config.json describes.

    Args:
        model_config: content of config.json; of a multimodal model the text part is read.

    Raises:
        ModelError: a size that every decoder model has is missing.
    """
    model_type = str(model_config.get("model_type", ""))
    nested = model_config.get("text_config")
    config = {**model_config, **nested} if isinstance(nested, Mapping) else model_config
    family = _FAMILIES.get(model_type)
    known = family is not None
    family = family or _LLAMA
    hidden = _size(config, "hidden_size")
    heads = _size(config, "num_attention_heads")
    head_dim = int(config.get("head_dim") or family.head_dim or hidden // heads)
    key_heads = int(config.get("num_key_value_heads") or heads)
    intermediate = _size(config, "intermediate_size", default=4 * hidden)
    vision_linear, vision_other = _vision_parameters(model_config.get("vision_config"), hidden)
    return Architecture(
        model_type=model_type,
        is_known=known,
        num_layers=_size(config, "num_hidden_layers"),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        vocab_size=_size(config, "vocab_size"),
        is_gated=family.is_gated,
        activation=str(
            config.get("hidden_act") or config.get("hidden_activation") or family.activation
        ),
        is_parallel=family.is_parallel,
        has_layer_norm=family.has_layer_norm,
        num_norms=family.num_norms,
        has_query_key_norm=family.has_query_key_norm,
        residual_dropout=float(config.get("resid_pdrop", family.residual_dropout)),
        ties_embeddings=bool(config.get("tie_word_embeddings", family.ties_embeddings)),
        head_has_bias=family.head_has_bias,
        sliding_window=_sliding_window(config),
        linears=_linears(config, family, hidden, intermediate, heads * head_dim, key_heads),
        vision_linear_weights=vision_linear,
        vision_other_parameters=vision_other,
    )


def _linears(
    config: Mapping[str, Any],
    family: _Family,
    hidden: int,
    intermediate: int,
    queries: int,
    key_heads: int,
) -> tuple[Linear, ...]:
    keys = queries // _size(config, "num_attention_heads") * key_heads
    asked = bool(config.get("attention_bias", False)) if family.qkv_bias is None else False
    qkv_bias = family.all_biases or bool(family.qkv_bias) or asked
    mlp_bias = family.all_biases or bool(config.get("mlp_bias", False))
    sizes = ((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden))
    biases = (qkv_bias, qkv_bias, qkv_bias, family.all_biases or asked)
    attention = (
        Linear(name, *size, bias)
        for name, size, bias in zip(family.names, sizes, biases, strict=True)
    )
    down = (intermediate, hidden)
    up = [(hidden, intermediate)] * (len(family.mlp_names) - 1)
    mlp = (
        Linear(name, *size, mlp_bias)
        for name, size in zip(family.mlp_names, [*up, down], strict=True)
    )
    return (*attention, *mlp)


def _vision_parameters(vision: Any, text_hidden: int) -> tuple[int, int]:
    """Return entries of matrices, and other parameters, of Gemma 3's image encoder (SigLIP).

    Patches and their positions are embedded, layers have q, k, v, out, fc1, fc2 and two norms,
    all with biases, and a norm and a matrix bring the result to the text model's hidden size.
    """
    if not isinstance(vision, Mapping):
        return 0, 0
    hidden, inner = _size(vision, "hidden_size"), _size(vision, "intermediate_size")
    layers, patch = _size(vision, "num_hidden_layers"), _size(vision, "patch_size")
    positions = (_size(vision, "image_size") // patch) ** 2
    biases_and_norms = 4 * hidden + inner + hidden + 4 * hidden
    embedding = 3 * patch * patch * hidden + hidden + positions * hidden
    projection = hidden + hidden * text_hidden
    other = layers * biases_and_norms + embedding + 2 * hidden + projection
    return layers * (4 * hidden * hidden + 2 * hidden * inner), other


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that layers look back, of models in which some or all layers do so."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return None
    return window


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    for key in (name, *_ALIASES.get(name, ())):
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    if default is not None:
        return default
    raise ModelError(
        f"names no {name}, so the model's size is unknown",
        where="config.json",
        hint="download the model again; its config.json is incomplete",
    )
