"""What a lean decoder layer keeps and takes in training, by formulas: bytes a token.

Derived from the code of `lorafit.model.lean`: products that read one value keep what their
prologue was given, in the compute dtype, and the fp32 low-rank products of their adapters; norms,
activations, gates and masks of dropout are computed again in backward.

Legend: H hidden size, I MLP's inner size, Q width of all queries, K of all keys, e bytes of the
compute dtype, r rank of the adapters.
"""

from lorafit.memory.layer_formulas import (
    LayerBytes,
    Run,
    attention_bytes,
    attention_kind,
    layer_bytes,
)

_MODEL_TYPES = frozenset({"phi", "llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""As `lorafit.model.lean.install.ARCHITECTURES`."""


def is_lean(run: Run) -> bool:
    """Return whether the layers are lean as a whole, as `model.lean.install` decides."""
    settings = run.settings
    return (
        settings.kernels == "lorafit"
        and not settings.use_dora
        and not settings.modules_to_save
        and run.arch.model_type in _MODEL_TYPES
    )


def bytes_of_layer(run: Run) -> LayerBytes:
    """Return what a layer keeps and takes, lean or not."""
    return lean_layer_bytes(run) if is_lean(run) else layer_bytes(run)


def lean_layer_bytes(run: Run) -> LayerBytes:
    """Return what a lean layer keeps and takes, in the order of its forward."""
    arch, e = run.arch, run.itemsize
    hidden, inner = e * arch.hidden_size, e * arch.intermediate_size
    attention, attention_backward = _attention(run)
    before_mlp = _norm_input(run) + attention + _head_norms(run)
    low_rank = 4.0 * run.settings.lora_r * sum(run.adapts(linear) for linear in arch.linears)
    if arch.is_parallel:
        saved = before_mlp + inner + low_rank
    else:
        # The second norm's input, and gate and up; Gemma also norms what attention and MLP return.
        saved = before_mlp + (arch.num_norms - 1) * _norm_input(run) + 2 * inner + low_rank

    # A mask of dropout is a byte an entry, and what it leaves of the value a copy.
    dropped = inner + arch.intermediate_size if run.drops else 0
    forward = saved + inner + max(dropped, hidden) + hidden
    # Gradients of the layer's output: of the residual, and of each branch behind its own dropout.
    gradients = (4 if arch.residual_dropout else 2) * hidden
    behind = max(2 * inner + dropped, (2 if arch.is_parallel else 4) * inner)
    at_down = saved + gradients + behind
    of_inner = inner if arch.is_parallel else 0
    in_attention = before_mlp + of_inner + hidden + attention_backward
    unpacking = saved + gradients + inner
    return LayerBytes(hidden, saved, forward, max(at_down, in_attention), unpacking)


def _norm_input(run: Run) -> float:
    """Return what a norm in front of products keeps: its input and its fp32 statistics."""
    statistics = 8.0 if run.arch.has_layer_norm else 4.0
    return run.itemsize * run.arch.hidden_size + statistics


def _head_norms(run: Run) -> float:
    """Return what norms of queries and keys keep: these as they were projected."""
    arch = run.arch
    if not arch.has_query_key_norm:
        return 0.0
    heads = arch.num_heads + arch.num_key_value_heads
    return run.itemsize * (arch.query_size + arch.key_size) + 4.0 * heads


def _attention(run: Run) -> tuple[float, float]:
    """Return what attention saves, and what its backward takes on top.

    Where its output is not among what it saves itself, the product behind it keeps it.
    """
    arch = run.arch
    window = arch.sliding_window
    kind = attention_kind(run, has_mask=window is not None and window < run.settings.max_length)
    saved, backward = attention_bytes(run, kind)
    output = run.itemsize * arch.query_size if kind in ("eager", "math") else 0
    return saved + output, backward
