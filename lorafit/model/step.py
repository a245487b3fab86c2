"""One optimizer step, the only description of it: training runs it, the memory tracer traces it.

Legend: B rows of a micro-batch, T tokens of its longest row, V vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from lorafit.config.schema import Settings

if TYPE_CHECKING:
    from torch import nn

Batch = Mapping[str, Any]
"""A micro-batch, as keyword arguments of the model: tensors, and what attention needs to know."""

IGNORED_LABEL = -100
ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


class StepOutcome(NamedTuple):
    """Loss and gradient norm of one optimizer step."""

    loss: torch.Tensor
    """Token mean over all micro-batches, detached, 0-dimensional."""
    grad_norm: torch.Tensor | None
    """Norm before clipping; None where clipping is off."""


def micro_batch_loss(
    model: "nn.Module",
    batch: Batch,
    num_targets: torch.Tensor | int,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the summed cross-entropy of a micro-batch over `num_targets` of the whole step.

    Dividing by the targets of the whole effective batch, not of the micro-batch, makes the sum
    over micro-batches the exact token mean, however the rows are spread.
    """
    if "target_positions" in batch:
        chunked: torch.Tensor = model(
            **batch, num_items_in_batch=num_targets, label_smoothing=label_smoothing
        ).loss
        return chunked
    if label_smoothing == 0.0:
        loss: torch.Tensor = model(**batch, num_items_in_batch=num_targets).loss
        return loss
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].float()  # [B, T-1, V]
    total = functional.cross_entropy(
        logits.flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / num_targets


def make_optimizer(model: "nn.Module", settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters; weight decay spares biases and norms."""
    groups = _parameter_groups(model, settings.weight_decay)
    rate = settings.learning_rate
    adam: dict[str, Any] = {"lr": rate, "betas": ADAM_BETAS, "eps": ADAM_EPSILON}
    if settings.optim == "adamw_torch":
        return torch.optim.AdamW(groups, **adam)
    if settings.optim == "adamw_torch_fused":
        return torch.optim.AdamW(groups, fused=True, **adam)
    if settings.optim == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    if settings.optim == "adafactor":
        from transformers.optimization import Adafactor

        factored: torch.optim.Optimizer = Adafactor(
            groups, lr=rate, scale_parameter=False, relative_step=False
        )
        return factored
    from bitsandbytes import optim as bnb

    optimizer: torch.optim.Optimizer = bnb.AdamW(
        groups,
        optim_bits=8 if settings.optim.endswith("8bit") else 32,
        is_paged=settings.optim.startswith("paged"),
        **adam,
    )
    return optimizer


def _parameter_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in trainable if p.ndim < 2 or n.endswith("bias")]
    decayed = [p for n, p in trainable if not (p.ndim < 2 or n.endswith("bias"))]
    groups = ((decayed, weight_decay), (plain, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def trainable_parameters(model: "nn.Module") -> list["nn.Parameter"]:
    """Return the parameters that are trained, in model order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def clip_gradients(parameters: Iterable["nn.Parameter"], max_norm: float) -> torch.Tensor:
    """Scale gradients down to `max_norm` in place and return their norm before it."""
    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)


def training_step(
    model: "nn.Module",
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    num_targets: int,
    settings: Settings,
) -> StepOutcome:
    """Run one optimizer step: every micro-batch forward and backward, clip, update, zero.

    `training.trainer` runs these very functions from the Trainer's loop, in this order; a test
    holds the two against each other.
    """
    total: torch.Tensor | None = None
    for batch in micro_batches:
        loss = micro_batch_loss(model, batch, num_targets, settings.label_smoothing_factor)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        total = loss.detach() if total is None else total + loss.detach()
        del loss
    assert total is not None, "a step needs at least one micro-batch"
    grad_norm = None
    if settings.max_grad_norm > 0:
        grad_norm = clip_gradients(trainable_parameters(model), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return StepOutcome(total, grad_norm)
