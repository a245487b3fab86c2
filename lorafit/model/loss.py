"""Cross-entropy that never holds all logits: only where there are targets, a chunk at a time.

A language model's logits are its largest tensor: 51,200 numbers a token for Phi-2, of which stock
training keeps one 16-bit and up to three 32-bit copies. Here the output layer runs over the
positions that have a target only, in chunks; each chunk's gradient is computed in the same pass
and only the gradient of the hidden states is kept.

Legend: N positions with a target, H hidden size, V vocabulary.
"""

import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lorafit.model.attention import without_mask
from lorafit.model.lean.products import linear, split_rows
from lorafit.units import MIB

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_CHUNK_BYTES = 256 * MIB
"""fp32 logits held at once: large enough for full-speed products, small beside a model."""
_MIN_CHUNK, _MAX_CHUNK = 128, 8192

# Output layers that scale logits in ways of their own keep transformers' loss.
_UNSUPPORTED = ("logit_scale", "logits_scaling", "output_multiplier_scale")


def chunk_rows(vocab_size: int) -> int:
    """Return how many positions' logits are held at once, a power of two."""
    fitting = _CHUNK_BYTES // (4 * vocab_size)
    return max(_MIN_CHUNK, min(_MAX_CHUNK, 1 << max(0, fitting.bit_length() - 1)))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of hidden states [N, H] under a frozen output layer [V, H], over a divisor."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        smoothing: float,
        softcap: float | None,
        divisor: torch.Tensor | float,
    ) -> torch.Tensor:
        needs_grad = ctx.needs_input_grad[0]
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        # float16 has not the range for gradients that no loss scaler has multiplied yet.
        kept = dtype if hidden.dtype == torch.float16 else hidden.dtype
        gradient = torch.empty_like(hidden, dtype=kept) if needs_grad else None
        rows = chunk_rows(weight.shape[0])
        stop = 0
        for size in split_rows(hidden.shape[0], rows):
            start, stop = stop, stop + size
            part = slice(start, stop)
            total += _chunk(
                hidden[part],
                weight,
                bias,
                targets[part],
                smoothing,
                softcap,
                divisor,
                None if gradient is None else gradient[part],
            )
        ctx.dtype = hidden.dtype
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        scaled = (gradient * grad_outputs[0].to(gradient.dtype)).to(ctx.dtype)
        return scaled, None, None, None, None, None, None


def _chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    smoothing: float,
    softcap: float | None,
    divisor: torch.Tensor | float,
    gradient: torch.Tensor | None,
) -> torch.Tensor:
    """Return the loss of a chunk, and put its gradient with respect to `hidden` into `gradient`.

    With p = softmax(z) and target distribution q = (1 - s) onehot + s / V, the loss is
    logsumexp(z) - q.z and its gradient with respect to z is p - q, both over the divisor. Logits
    become exponentials and these the gradient in one and the same memory.
    """
    logits = linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    slope = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        # d/dz of cap * tanh(z / cap) is 1 - tanh(z / cap)^2.
        slope = 1 - logits.square() if gradient is not None else None
        logits.mul_(softcap)
    # Loss and gradient do not change with a number taken from all logits of a position.
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    loss = (smoothing - 1) * logits.gather(-1, targets[:, None])
    if smoothing:
        loss -= smoothing * logits.mean(dim=-1, keepdim=True)
    exponentials = logits.exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    loss = (loss + total.log()).sum() / divisor
    if gradient is None:
        return loss
    # Divided while it is wide: the divisor itself would be rounded to 16 bit.
    of_logits = exponentials.mul_(1 / (total * divisor))
    if smoothing:
        of_logits.sub_(smoothing / (logits.shape[-1] * divisor))
    onehot = torch.full_like(total, smoothing - 1) / divisor
    of_logits.scatter_add_(-1, targets[:, None], onehot)
    if slope is not None:
        of_logits.mul_(slope)
    gradient.copy_(linear(of_logits.to(weight.dtype), weight.t(), None))
    return loss


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    smoothing: float = 0.0,
    softcap: float | None = None,
    divisor: torch.Tensor | float = 1,
) -> torch.Tensor:
    """Return the summed cross-entropy of `hidden` [N, H] against `targets` [N], over `divisor`.

    The loss is fp32 or wider. The output layer (`weight` [V, H], `bias` [V]) is frozen: only
    `hidden` gets a gradient.
    """
    result: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, smoothing, softcap, divisor
    )
    return result


def locate_targets(labels: torch.Tensor, ignored_label: int) -> dict[str, torch.Tensor]:
    """Return the flat positions [N] in labels [B, T] whose next token is a target, and these.

    Position b * T + t predicts label [b, t + 1].
    """
    is_target = torch.zeros_like(labels, dtype=torch.bool)
    is_target[:, :-1] = labels[:, 1:] != ignored_label
    positions = is_target.flatten().nonzero().squeeze(-1)
    return {"target_positions": positions, "targets": labels.flatten()[positions + 1]}


def why_not_chunked(base: "PreTrainedModel") -> str | None:
    """Return why a model keeps transformers' own loss, or None if it takes the chunked one."""
    output = base.get_output_embeddings()
    if not isinstance(output, torch.nn.Linear):
        return "its output layer is not a Linear module"
    if output.weight.requires_grad:
        return "its output layer is trained"
    scaled = [name for name in _UNSUPPORTED if getattr(base.config, name, None) not in (None, 1)]
    if scaled:
        return f"it scales its logits ({scaled[0]})"
    if getattr(base, "model", None) is None:
        return "its decoder is not where transformers puts it"
    return None


def install_chunked_loss(base: "PreTrainedModel") -> None:
    """Give the model a loss from `target_positions`; calls without them go the usual way.

    The forward of the instance is replaced, so that wrappers around it (PEFT, DDP) still see one
    call of one model.
    """
    plain_forward = base.forward

    def forward(self: Any, *arguments: Any, **inputs: Any) -> Any:
        if "target_positions" not in inputs:
            return plain_forward(*arguments, **inputs)
        return _forward_with_loss(self, inputs)

    base.forward = types.MethodType(forward, base)


def _forward_with_loss(model: Any, inputs: Mapping[str, Any]) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    own = ("labels", "target_positions", "targets", "num_items_in_batch", "label_smoothing")
    body = {name: value for name, value in inputs.items() if name not in own}
    body = without_mask(body, model.config)
    hidden = model.model(**body, use_cache=False).last_hidden_state  # [B, T, H]
    chosen = hidden.flatten(0, 1).index_select(0, inputs["target_positions"])
    output: nn.Linear = model.get_output_embeddings()
    loss = chunked_cross_entropy(
        chosen,
        output.weight,
        output.bias,
        inputs["targets"],
        smoothing=inputs.get("label_smoothing", 0.0),
        softcap=getattr(model.config, "final_logit_softcapping", None),
        divisor=inputs["num_items_in_batch"],
    )
    return CausalLMOutputWithPast(loss=loss)
