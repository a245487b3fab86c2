"""Attention over rows laid end to end: every row, a document, attends to itself alone.

A batch without padding is one row of N tokens, the concatenation of D documents. Positions start
again at each, and attention is block-diagonal: transformers' interface for attention functions
gets one that reads where documents begin. For a padded batch (validation, generation) the same
function is transformers' own `sdpa`.

Legend: N tokens of the batch, D documents, H heads, E head size.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch

from lorafit.config.padding import wants_no_padding
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, Problem
from lorafit.hardware.info import Choice, DeviceKind
from lorafit.model.document_attention import document_attention, window_mask
from lorafit.model.lean.products import device_type
from lorafit.model.libraries import quick_imports

with quick_imports():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations import sdpa_attention
    from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ATTENTION_NAME = "lorafit"
"""The name under which transformers knows the function."""

BlockAttention = Literal["varlen", "flash_attention_2", "documents"]
"""What computes block-diagonal attention: `torch.nn.attention.varlen`, the package flash-attn
through transformers, or one call of PyTorch's fused attention a document."""

_TESTED = ("phi", "llama", "mistral", "gemma3_text", "qwen2", "qwen3")
"""Architectures for which tests prove that no row sees its neighbours."""
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
_HALF = (torch.float16, torch.bfloat16)


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention's output [B, N, H, E], as transformers wants it, and no weights.

    Args:
        module: the attention module.
        query: [B, H, N, E].
        key: [B, key heads, N, E].
        value: [B, key heads, N, E].
        attention_mask: of a padded batch; without padding there is none to look at.
        dropout: share of the attention weights that is dropped.
        scaling: factor of the scores.
        options: `cu_seq_lens_q` int32 [D+1] and `max_length_q` of a batch without padding,
            `document_lengths` where documents are taken one by one, `sliding_window` in tokens.
    """
    lengths = options.pop("document_lengths", None)
    if options.get("cu_seq_lens_q") is None:
        return _sdpa(module, query, key, value, attention_mask, dropout, scaling, options)
    window: int | None = options.get("sliding_window")
    if lengths is None:
        return _varlen(query, key, value, scaling, window, options), None
    if device_type(query) == "cpu" and not dropout:
        heads = document_attention(query, key, value, lengths, scaling=scaling, window=window)
        return heads, None
    # One split, and not D slices: the gradient of a slice is as large as what it was cut from.
    documents = zip(*(torch.split(each, lengths, 2) for each in (query, key, value)), strict=True)
    outputs = [_document(module, q, k, v, dropout, scaling, window) for q, k, v in documents]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), None


def _sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    # Looked up at every call: `attention_context` replaces what it does with grouped heads.
    result: tuple[torch.Tensor, None] = sdpa_attention.sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **options
    )
    return result


def _document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return causal attention [1, T, H, E] of one document of T tokens."""
    num_tokens = query.shape[2]
    mask = None
    if window is not None and num_tokens > window:
        mask = window_mask(num_tokens, window, query.device)[None, None]
    options = {"is_causal": True}
    return _sdpa(module, query, key, value, mask, dropout, scaling, options)[0]


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Return attention [1, N, H, E] by one kernel that knows where documents begin."""
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query.transpose(1, 2).squeeze(0),  # [N, H, E]
        key.transpose(1, 2).squeeze(0),
        value.transpose(1, 2).squeeze(0),
        options["cu_seq_lens_q"],
        options["cu_seq_lens_k"],
        options["max_length_q"],
        options["max_length_k"],
        scale=scaling,
        # Each query sees itself and the tokens before it: `window` in all, or every one.
        window_size=(-1, 0) if window is None else (window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor), "no auxiliary output was asked for"
    return output.unsqueeze(0)


def without_mask(inputs: dict[str, Any], config: "PretrainedConfig") -> dict[str, Any]:
    """Return the inputs of a decoder so that no N x N mask is built for documents end to end.

    transformers reads documents off the positions and makes a mask of them. It leaves a mask of
    four dimensions as it is, and `block_attention` looks at none.
    """
    if "cu_seq_lens_q" not in inputs or config._attn_implementation != ATTENTION_NAME:
        return inputs
    device = inputs["input_ids"].device
    return {**inputs, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}


# -- Whether, and by what ------------------------------------------------------------------


def choose_block_attention(
    settings: Settings,
    config: "PretrainedConfig",
    *,
    loss: Choice[bool],
    device_kind: DeviceKind,
    compute_capability: tuple[int, int] | None,
    dtype: torch.dtype,
    compiles: bool = False,
) -> Choice[BlockAttention | None]:
    """Return what computes attention without padding, or None for padded rows, and why.

    Args:
        settings: of the run.
        config: of the base model.
        loss: whether the model takes the chunked loss, which knows where documents begin.
        device_kind: where it runs.
        compute_capability: of an NVIDIA GPU.
        dtype: what attention computes in.
        compiles: whether the model goes through torch.compile.

    Raises:
        ConfigError: padding_free or packing was asked for and cannot be had.
    """
    if not wants_no_padding(settings):
        return Choice(None, "padding_free is off: rows are padded to the longest of a micro-batch")
    is_asked_for = settings.packing or settings.padding_free == "true"
    obstacle = _obstacle_in_model(settings, config, loss)
    if obstacle is None:
        kind, obstacle = _on_device(settings, config, device_kind, compute_capability, dtype)
        if obstacle is not None and is_asked_for:
            kind, obstacle = "documents", None
        if kind == "documents" and compiles:
            obstacle = "torch.compile would compile anew for the lengths of every batch"
        if obstacle is None:
            return Choice(kind, f"rows go end to end without padding, {_HOW[kind]}")
    if is_asked_for:
        name = "packing" if settings.packing else "padding_free"
        raise ConfigError([Problem(name, f"it cannot be used: {obstacle}", f"{name}=false")])
    return Choice(None, f"rows are padded to the longest of a micro-batch: {obstacle}")


_HOW: dict[BlockAttention, str] = {
    "varlen": "attention by PyTorch's varlen kernel",
    "flash_attention_2": "attention by flash-attn's varlen kernel",
    "documents": "attention row by row",
}


def _obstacle_in_model(
    settings: Settings, config: "PretrainedConfig", loss: Choice[bool]
) -> str | None:
    if settings.kernels == "stock":
        return "kernels stock trains with padding, as transformers does"
    if settings.attn_implementation in ("eager", "sdpa-efficient"):
        return f"attn_implementation {settings.attn_implementation} knows padded rows only"
    if not loss.value:
        return f"the loss has to know where rows begin, and the model keeps {loss.reason}"
    if config.model_type not in _TESTED:
        return f"how {config.model_type} uses positions is not known here"
    for rope in sorted(_rotary_types(config) & _LENGTH_DEPENDENT_ROPE):
        return f"its {rope} rotary embedding depends on the longest row of a batch"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    return None


def _rotary_types(config: "PretrainedConfig") -> set[str]:
    """Return the kinds of rotary embedding; some models have one a type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(each.get("rope_type")) for each in nested or [parameters]}


def _on_device(
    settings: Settings,
    config: "PretrainedConfig",
    kind: DeviceKind,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
) -> tuple[BlockAttention, str | None]:
    """Return what the device takes for it, and why padding is better there, if it is."""
    if settings.attn_implementation == "flash_attention_2":
        return "flash_attention_2", None
    if kind == "cpu":
        return "documents", None
    if kind == "mps":
        return "documents", "Metal keeps memory for each new shape, so rows get a few lengths"
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    if (capability or (0, 0)) < (8, 0):
        return "varlen", "this GPU is older than the varlen kernel (capability 8.0)"
    if dtype not in _HALF:
        return "varlen", f"the varlen kernel computes in 16 bits, not in {dtype}".replace(
            "torch.", ""
        )
    if head_dim % 8 or head_dim > 256:
        return "varlen", f"the varlen kernel does not take heads of size {head_dim}"
    if getattr(config, "attention_dropout", 0.0):
        return "varlen", "the varlen kernel has no dropout, and the model asks for it"
    return "varlen", None


AttentionInterface.register(ATTENTION_NAME, block_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
