"""Signs that a run learns nothing, or less than it should: told, never a reason to stop."""

import statistics
from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

_WINDOW = 50
_SPIKE_RATIO = 3.0
_SPIKE_NATS = 1.0
_MAX_TOLD = 5
_MAX_NAMED = 4


def idle_adapters(model: "nn.Module") -> list[str]:
    """Return the modules whose lora_B got no usable gradient: none, only zeros, or non-finite.

    B begins at zero and A does not, so that after the first backward pass every B of a module that
    takes part has a gradient that is not zero (promise R7).
    """
    idle = []
    for name, parameter in model.named_parameters():
        if "lora_B" not in name or not parameter.requires_grad:
            continue
        gradient = parameter.grad
        if (
            gradient is None
            or not bool(gradient.count_nonzero())
            or not bool(torch.isfinite(gradient).all())
        ):
            idle.append(_module_of(name))
    return idle


def _module_of(parameter: str) -> str:
    return parameter.partition(".lora_B")[0].removeprefix("base_model.model.")


def idle_warning(modules: list[str], num_adapters: int) -> str | None:
    """Return the sentence about adapters that do not learn, if there are any."""
    if not modules:
        return None
    named = ", ".join(modules[:_MAX_NAMED])
    more = f" and {len(modules) - _MAX_NAMED} more" if len(modules) > _MAX_NAMED else ""
    return (
        f"{len(modules)} of {num_adapters} adapters got no gradient in the first step and do not "
        f"learn: {named}{more}; is each of these modules used in the forward pass?"
    )


def count_adapters(model: "nn.Module") -> int:
    """Return the number of trained lora_B matrices."""
    return sum("lora_B" in n and p.requires_grad for n, p in model.named_parameters())


class LossWatch:
    """Tells of losses that are far above those before them."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self.num_spikes = 0

    def look(self, step: int, loss: float, grad_norm: float, max_grad_norm: float) -> str | None:
        """Return a warning where `loss` is a spike: three times the median of the last 50, and a
        nat above it; one nat, as small losses vary threefold by chance.
        """  # noqa: D205
        usual = statistics.median(self._recent) if self._recent else None
        self._recent.append(loss)
        if usual is None or loss < _SPIKE_RATIO * usual or loss < usual + _SPIKE_NATS:
            return None
        self.num_spikes += 1
        if self.num_spikes > _MAX_TOLD:
            return None
        clipped = (
            f"clipped from {grad_norm:.3g} to {max_grad_norm:g}"
            if 0 < max_grad_norm < grad_norm
            else f"{grad_norm:.3g}, not clipped"
        )
        last = "; more of them are in events.jsonl only" if self.num_spikes == _MAX_TOLD else ""
        return (
            f"step {step}: loss {loss:.4g} is far above the usual {usual:.4g}; gradient norm "
            f"{clipped}{last}"
        )
