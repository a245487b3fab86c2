"""Adapters merged into their base, and how far the merged model drifts from the pair."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorafit.errors import AdapterError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MAX_LOST_SHARE = 0.1
"""How much of the adapter's effect a merge may lose."""
NEGLIGIBLE_NATS = 3e-3
"""What rounding in 16 bits alone can make, however small the adapter's effect."""


@dataclass(frozen=True)
class Drift:
    """The merged model against base plus adapter, over the tokens of some texts.

    Divergences are Kullback-Leibler, mean a token, in nats: how much worse the one model predicts
    what the other would write.
    """

    num_tokens: int
    max_logit: float
    """Largest difference of a log probability."""
    divergence: float
    """From base plus adapter to the merged model."""
    adapter_effect: float
    """From base plus adapter to the base alone: what there is to lose."""
    same_choice: float
    """Share of tokens after which both find the same next token likeliest."""

    @property
    def lost_share(self) -> float:
        """Drift as a share of what the adapter does."""
        return self.divergence / self.adapter_effect if self.adapter_effect > 0 else 0.0

    @property
    def is_acceptable(self) -> bool:
        """Whether the merged model may stand for base plus adapter."""
        return self.divergence <= max(NEGLIGIBLE_NATS, MAX_LOST_SHARE * self.adapter_effect)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "lost_share": self.lost_share}


def merge_adapter(model: "PeftModel") -> "PreTrainedModel":
    """Add the adapter to the weights and return the plain model.

    Each layer is merged in fp32 and rounded to the base's dtype once: PEFT alone would round the
    product of the adapter first and the sum again.

    Raises:
        AdapterError: a merged weight is not finite.
    """
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        with _in_float32(module.get_base_layer()):
            try:
                module.merge(safe_merge=True)
            except ValueError as problem:
                raise AdapterError(
                    f"merged into {name} it is not finite",
                    hint="training may have diverged: export an earlier checkpoint",
                ) from problem
    # The layers know that they are merged, so this only takes the wrappers away.
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


@contextlib.contextmanager
def _in_float32(layer: torch.nn.Module) -> Iterator[None]:
    parameters = [p for p in layer.parameters(recurse=False) if p.is_floating_point()]
    dtypes = [parameter.dtype for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in zip(parameters, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return the log probabilities of the next token after each token, a tensor [T, V] a row.

    Computed in fp32 on the CPU, whatever the model computes in.
    """
    device = next(model.parameters()).device
    found = []
    for row in rows:
        logits = model(input_ids=torch.tensor([list(row)], device=device)).logits[0]
        found.append(torch.log_softmax(logits.float().cpu(), dim=-1))
    return found


def measure_drift(
    adapted: Sequence[torch.Tensor], base: Sequence[torch.Tensor], merged: Sequence[torch.Tensor]
) -> Drift:
    """Compare log probabilities [T, V] of base plus adapter, base alone and merged model."""
    together, alone, after = (torch.cat(list(rows)) for rows in (adapted, base, merged))
    probability = together.exp()
    return Drift(
        num_tokens=len(together),
        max_logit=float((together - after).abs().max()),
        divergence=_divergence(probability, together, after),
        adapter_effect=_divergence(probability, together, alone),
        same_choice=float((together.argmax(-1) == after.argmax(-1)).float().mean()),
    )


def _divergence(probability: torch.Tensor, log: torch.Tensor, other: torch.Tensor) -> float:
    # Rounding can make it a hair negative, which it never is.
    return max(0.0, float((probability * (log - other)).sum(-1).mean()))
