"""Cross-entropy that never holds all logits: only where there are targets, a chunk at a time.

A language model's logits are its largest tensor: 51,200 numbers a token for Phi-2, of which stock
training keeps one 16-bit and up to three 32-bit copies. Here the output layer runs over the
positions that have a target only, in chunks; each chunk's gradient is computed in the same pass
and only the gradient of the hidden states is kept, and those of an adapter on the output layer.

Legend: N positions with a target, n of them in a chunk, H hidden size, V vocabulary, R rank.
"""

import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from lorafit.model.attention import without_mask
from lorafit.model.chunks import chunk_rows
from lorafit.model.lean.dropout import DropoutSeeds, keep_mask
from lorafit.model.lean.linears import ADAPTER, AdaptedLinear, without_autocast
from lorafit.model.lean.products import (
    add_product,
    device_type,
    fitting_rows,
    linear,
    project,
    weight_gradient,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Output layers that scale logits in ways of their own keep transformers' loss.
_UNSUPPORTED = ("logit_scale", "logits_scaling", "output_multiplier_scale")


class HeadUpdate(NamedTuple):
    """LoRA on the output layer: its logits are W x + b + scale * B A (m x), m dropout's mask."""

    a: torch.Tensor
    """[R, H], fp32 or wider."""
    b: torch.Tensor
    """[V, R]."""
    scale: float
    dropout: float = 0.0
    seed: Callable[[int], int] = lambda chunk: 0
    """Return the seed of a chunk's mask."""


class _Gradients:
    """Where the chunks put their gradients, of what wants one."""

    def __init__(
        self, hidden: torch.Tensor, update: HeadUpdate | None, of_hidden: bool, of_update: bool
    ) -> None:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        # float16 has not the range for gradients that no loss scaler has multiplied yet.
        kept = dtype if hidden.dtype == torch.float16 else hidden.dtype
        self.hidden = torch.empty_like(hidden, dtype=kept) if of_hidden else None
        self.a: torch.Tensor | None = None
        self.b: torch.Tensor | None = None
        if update is not None and of_update:
            self.a = torch.zeros_like(update.a)
            self.b = update.b.new_zeros(update.b.shape[::-1])  # [R, V], as the product gives it

    @property
    def are_wanted(self) -> bool:
        """Whether anything has a gradient."""
        return self.hidden is not None or self.a is not None


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of hidden states [N, H] under an output layer [V, H], over a divisor."""

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
        update: HeadUpdate | None,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        gradients = _Gradients(
            hidden, update, ctx.needs_input_grad[0], any(ctx.needs_input_grad[8:])
        )
        rows = chunk_rows(weight.shape[0], device_type(hidden))
        for number, start in enumerate(range(0, hidden.shape[0], rows)):
            part = slice(start, min(start + rows, hidden.shape[0]))
            count = part.stop - start
            # Rows that only make the products quick; each row is computed by itself.
            missing = fitting_rows(count, hidden) - count
            logits = linear(_padded(hidden[part], missing), weight, bias)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            adapted = None
            if update is not None:
                adapted = _AdaptedChunk(hidden[part], update, number)
                adapted.add_to(logits[:count])
            losses, of_logits = _chunk(
                logits,
                _padded(targets[part], missing),
                smoothing,
                softcap,
                divisor,
                gradients.are_wanted,
            )
            total += losses[:count].sum() / divisor
            if of_logits is not None:
                _take_back(of_logits, weight, adapted, gradients, part)
            del logits, losses, of_logits, adapted
        ctx.dtype = hidden.dtype
        ctx.scale = 1.0 if update is None else update.scale / (1 - update.dropout)
        ctx.save_for_backward(gradients.hidden, gradients.a, gradients.b)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        of_hidden, of_a, of_b = ctx.saved_tensors
        factor = grad_outputs[0]
        if of_hidden is not None:
            of_hidden = (of_hidden * factor.to(of_hidden.dtype)).to(ctx.dtype)
        factors: tuple[torch.Tensor, ...] = ()
        if of_a is not None:
            factors = (of_a * factor, (of_b.t() * (factor * ctx.scale)).contiguous())
        wanted = factors or (None,) * (len(ctx.needs_input_grad) - 8)
        return of_hidden, None, None, None, None, None, None, None, *wanted


class _AdaptedChunk:
    """The update of the output layer for the hidden states [n, H] of one chunk."""

    def __init__(self, hidden: torch.Tensor, update: HeadUpdate, number: int) -> None:
        self._update = update
        self._scale = update.scale / (1 - update.dropout)
        self._mask = None
        if update.dropout:
            self._mask = keep_mask(hidden, update.dropout, update.seed(number))
        self._inputs = hidden if self._mask is None else hidden * self._mask
        with without_autocast(hidden.device.type):
            self._low = project(self._inputs, update.a)  # [n, R]

    def add_to(self, logits: torch.Tensor) -> None:
        """Add s B A (m x) to fp32 logits [n, V], in place."""
        with without_autocast(logits.device.type):
            logits.addmm_(self._low, (self._update.b * self._scale).t())

    def take_back(self, of_logits: torch.Tensor, gradients: _Gradients, part: slice) -> None:
        """Add gradients of A, B and the hidden states, as `lean.linears` has them."""
        with without_autocast(of_logits.device.type):
            high = of_logits @ (self._update.b * self._scale)  # [n, R]
            if gradients.b is not None:
                gradients.b.addmm_(self._low.t(), of_logits)
            if gradients.a is not None:
                gradients.a.add_(weight_gradient(high, self._inputs))
            if gradients.hidden is not None:
                into = gradients.hidden[part]
                if self._mask is None:
                    add_product(into, high, self._update.a.t())
                else:
                    behind = torch.zeros_like(into)
                    add_product(behind, high, self._update.a.t())
                    into.add_(behind.mul_(self._mask))


def _take_back(
    of_logits: torch.Tensor,
    weight: torch.Tensor,
    adapted: _AdaptedChunk | None,
    gradients: _Gradients,
    part: slice,
) -> None:
    """Put what a chunk's gradient of the logits [n, V] means for its inputs into `gradients`."""
    count = part.stop - part.start
    if gradients.hidden is not None:
        product = linear(of_logits.to(weight.dtype), weight.t(), None)
        gradients.hidden[part].copy_(product[:count])
    if adapted is not None:
        adapted.take_back(of_logits[:count], gradients, part)


def _padded(rows: torch.Tensor, missing: int) -> torch.Tensor:
    """Return rows [n, ...] with zeros behind them."""
    if not missing:
        return rows
    return functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing))


def _chunk(
    logits: torch.Tensor,
    targets: torch.Tensor,
    smoothing: float,
    softcap: float | None,
    divisor: torch.Tensor | float,
    wants_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the losses [n, 1] of fp32 logits [n, V], and the gradient of their sum over a divisor.

    With p = softmax(z) and target distribution q = (1 - s) onehot + s / V, a loss is
    logsumexp(z) - q.z and its gradient with respect to z is p - q. Logits become exponentials
    and these the gradient in one and the same memory.
    """
    slope = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        # d/dz of cap * tanh(z / cap) is 1 - tanh(z / cap)^2.
        slope = 1 - logits.square() if wants_gradient else None
        logits.mul_(softcap)
    # Loss and gradient do not change with a number taken from all logits of a position.
    logits.sub_(logits.amax(dim=-1, keepdim=True))
    loss = (smoothing - 1) * logits.gather(-1, targets[:, None])
    if smoothing:
        loss -= smoothing * logits.mean(dim=-1, keepdim=True)
    exponentials = logits.exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    loss += total.log()
    if not wants_gradient:
        return loss, None
    # Divided while it is wide: the divisor itself would be rounded to 16 bit.
    of_logits = exponentials.mul_(1 / (total * divisor))
    if smoothing:
        of_logits.sub_(smoothing / (logits.shape[-1] * divisor))
    onehot = torch.full_like(total, smoothing - 1) / divisor
    of_logits.scatter_add_(-1, targets[:, None], onehot)
    if slope is not None:
        of_logits.mul_(slope)
    return loss, of_logits


def chunked_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    *,
    smoothing: float = 0.0,
    softcap: float | None = None,
    divisor: torch.Tensor | float = 1,
    update: HeadUpdate | None = None,
) -> torch.Tensor:
    """Return the summed cross-entropy of `hidden` [N, H] against `targets` [N], over `divisor`.

    The loss is fp32 or wider. The output layer (`weight` [V, H], `bias` [V]) is frozen: `hidden`
    gets a gradient, and so do the factors of its `update`, if it has an adapter.
    """
    factors = () if update is None else (update.a, update.b)
    result: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, smoothing, softcap, divisor, update, *factors
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
    output: Any = base.get_output_embeddings()
    if isinstance(getattr(output, "modules_to_save", None), torch.nn.ModuleDict):
        return "modules_to_save trains its output layer as a whole"
    layer = AdaptedLinear(output)
    if not isinstance(layer.base, torch.nn.Linear):
        return "its output layer is not a Linear module"
    if layer.base.weight.requires_grad:
        return "its output layer is trained"
    if layer.is_target and (output.lora_variant or list(output.lora_A) != [ADAPTER]):
        return "the adapter of its output layer is not plain LoRA"
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
    seeds = DropoutSeeds()

    def forward(self: Any, *arguments: Any, **inputs: Any) -> Any:
        if "target_positions" not in inputs:
            return plain_forward(*arguments, **inputs)
        return _forward_with_loss(self, inputs, seeds)

    base.forward = types.MethodType(forward, base)


def _forward_with_loss(model: Any, inputs: Mapping[str, Any], seeds: DropoutSeeds) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    own = ("labels", "target_positions", "targets", "num_items_in_batch", "label_smoothing")
    body = {name: value for name, value in inputs.items() if name not in own}
    body = without_mask(body, model.config)
    chosen = _hidden_states_at(inputs["target_positions"], model, body)
    output = AdaptedLinear(model.get_output_embeddings())
    base: Any = output.base
    loss = chunked_cross_entropy(
        chosen,
        base.weight,
        base.bias,
        inputs["targets"],
        smoothing=inputs.get("label_smoothing", 0.0),
        softcap=getattr(model.config, "final_logit_softcapping", None),
        divisor=inputs["num_items_in_batch"],
        update=_update_of(output, seeds),
    )
    return CausalLMOutputWithPast(loss=loss)


_WORTH_DROPPING = 1 / 8
"""Share of the tokens from which on the last layer leaves out those that the loss does not read."""


def _hidden_states_at(positions: torch.Tensor, model: Any, body: Mapping[str, Any]) -> torch.Tensor:
    """Return the decoder's last hidden states [N, H] at flat positions [N] of its tokens.

    The last layer is asked for no others, where it knows how; see `lean.layers`.
    """
    num_tokens, count = body["input_ids"].numel(), positions.shape[0]
    padded = fitting_rows(count, positions)
    options = {}
    if padded < num_tokens * (1 - _WORTH_DROPPING):
        options["read_positions"] = functional.pad(positions, (0, padded - count))
    output = model.model(**body, **options, use_cache=False)
    hidden: torch.Tensor = output.last_hidden_state.flatten(0, 1)
    return hidden.index_select(0, positions) if hidden.shape[0] == num_tokens else hidden[:count]


def _update_of(output: AdaptedLinear, seeds: DropoutSeeds) -> HeadUpdate | None:
    """Return the adapter of the output layer, if it has one that acts now."""
    if not (output.is_target and output.is_active):
        return None
    if output.dropout:
        seeds.draw()
    a, b = output.factors
    return HeadUpdate(a, b, output.scale, output.dropout, lambda chunk: seeds.seed(chunk, 0))
