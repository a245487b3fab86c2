"""Attention of documents that lie end to end, on a CPU: one after the other, by PyTorch's kernel.

One autograd function for all documents keeps what attention was given and its output, no copy of
either. In 16 bit PyTorch's kernel for CPUs keeps 3 to 5 MiB for every length that it has ever seen
(torch 2.13, processors with bfloat16 instructions); documents are widened to 32 bit one by one
instead, which is also twice as fast for those of 100 tokens, and a fifth slower at 500.

Legend: D documents of T tokens, N in all; H heads of size E, K of them of keys and values.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

_aten = torch.ops.aten


def document_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Return causal attention [1, N, H, E] within each document.

    Args:
        query: [1, H, N, E].
        key: [1, K, N, E]; K divides H.
        value: [1, K, N, E].
        lengths: tokens of each of the D documents, N together.
        scaling: factor of the scores; 1 / sqrt(E) by default.
        window: how many tokens a query sees, itself among them; all before it by default.
    """
    output: torch.Tensor = _DocumentAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, lengths, scaling, window
    )
    return output


class _DocumentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        lengths: Sequence[int],
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        output = _empty_heads(query)
        sums = []
        for q, k, v, into in _documents(lengths, query, key, value, output):
            part, logsumexp = _aten._scaled_dot_product_flash_attention_for_cpu(
                *_operands(q, k, v), 0.0, **_visible(q, window), scale=scaling
            )
            into.copy_(part)
            sums.append(logsumexp)
        ctx.lengths, ctx.scaling, ctx.window = lengths, scaling, window
        ctx.save_for_backward(query, key, value, output, *sums)
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        query, key, value, output, *sums = ctx.saved_tensors
        gradient = grad_outputs[0].transpose(1, 2)
        of_inputs = [_empty_heads(each) for each in (query, key, value)]
        parts = _documents(ctx.lengths, query, key, value, output, gradient, *of_inputs)
        for (q, k, v, out, grad, *into), logsumexp in zip(parts, sums, strict=True):
            visible = _visible(q, ctx.window)
            found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _wide(grad),
                *_operands(q, k, v),
                _wide(out),
                logsumexp,
                0.0,
                visible["is_causal"],
                attn_mask=visible["attn_mask"],
                scale=ctx.scaling,
            )
            for place, heads in zip(into, found, strict=True):
                place.copy_(_summed(heads, place.shape[1]))
        return *of_inputs, None, None, None


def _empty_heads(like: torch.Tensor) -> torch.Tensor:
    """Return [1, H, N, E] that lies in memory as [1, N, H, E], as products want it."""
    contiguous = torch.contiguous_format
    return torch.empty_like(like.transpose(1, 2), memory_format=contiguous).transpose(1, 2)


def _documents(
    lengths: Sequence[int], *tensors: torch.Tensor
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Return the part [1, H, T, E] of each tensor, document by document."""
    return zip(*(torch.split(each, list(lengths), 2) for each in tensors), strict=True)


def _operands(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the kernel's operands: of 32 bit at the least, and with as many heads each."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    return _wide(query), _wide(key), _wide(value)


def _summed(gradient: torch.Tensor, heads: int) -> torch.Tensor:
    """Return the gradient of heads that were repeated, from that of the repetitions."""
    if gradient.shape[1] == heads:
        return gradient
    count, repeated, num_tokens, size = gradient.shape
    return gradient.reshape(count, heads, repeated // heads, num_tokens, size).sum(2)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _visible(query: torch.Tensor, window: int | None) -> dict[str, Any]:
    """Return what a token of a document sees, as the kernel takes it."""
    num_tokens = query.shape[2]
    if window is None or num_tokens <= window:
        return {"is_causal": True, "attn_mask": None}
    hidden = ~window_mask(num_tokens, window, query.device)
    mask = _wide(query.new_zeros(num_tokens, num_tokens)).masked_fill_(hidden, float("-inf"))
    return {"is_causal": False, "attn_mask": mask[None, None]}


def window_mask(num_tokens: int, window: int, device: torch.device) -> torch.Tensor:
    """Return which tokens [T, T] a query sees: itself and those before it, `window` in all."""
    position = torch.arange(num_tokens, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)
