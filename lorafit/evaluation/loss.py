"""Validation loss: the exact mean over all targets of a data set, however it is batched.

Batches are those of training: rows padded to one length, or end to end where training has them so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from lorafit.data.micro_batches import MicroBatchLimits, StepRows, plan_micro_batches
from lorafit.model.step import micro_batch_loss

if TYPE_CHECKING:
    from torch import nn

Batch = Mapping[str, Any]


class Rows(Protocol):
    """Tokenized rows, such as a `lorafit.data.dataset.TokenizedDataset`."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: int) -> Mapping[str, Sequence[int]]:
        """Return `input_ids` and `labels` of a row."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each row, known without reading it."""


class LossReport(NamedTuple):
    """The loss over a data set."""

    loss: float
    """Mean cross-entropy a target token, in nats."""
    perplexity: float
    """exp(loss); infinite where that overflows."""
    num_rows: int
    num_targets: int


@torch.no_grad()
def evaluate_loss(
    model: "nn.Module",
    rows: Rows,
    collate: Callable[[list[Mapping[str, Sequence[int]]]], Batch],
    limits: MicroBatchLimits,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> LossReport:
    """Return the mean loss over `rows`, in evaluation mode; restores the training mode.

    The longest row is in the first batch: an out-of-memory error then comes at once. Padded batches
    are taken longest first, so that they hold rows of like length and little padding is computed.

    Args:
        model: what is measured.
        rows: of the data set.
        collate: makes a batch of rows.
        limits: rows of a batch, or the tokens of all its rows where they go end to end.
        device: where the model is.
        progress: hears how many batches are done, and of how many.
    """
    was_training = model.training
    model.eval()
    batches = _plan_batches(rows.lengths, limits)
    total, num_targets = 0.0, 0
    try:
        for done, indices in enumerate(batches, 1):
            chosen = [rows[index] for index in indices]
            targets = StepRows((tuple(chosen),)).num_targets
            # One target as the divisor gives the sum, which is then exact over batches.
            if targets:
                total += float(micro_batch_loss(model, _moved(collate(chosen), device), 1))
            num_targets += targets
            if progress is not None:
                progress(done, len(batches))
    finally:
        model.train(was_training)
    loss = total / num_targets if num_targets else math.nan
    return LossReport(loss, _perplexity(loss), len(rows), num_targets)


_PLANNED_TOGETHER = 256
"""Rows that are put together under a token budget at once: the work grows with their square."""


def _plan_batches(lengths: Sequence[int], limits: MicroBatchLimits) -> list[list[int]]:
    """Return rows, by index, in batches; the longest row is in the first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    batches = []
    # Each part has rows of all lengths, as short ones fill what long ones leave.
    num_parts = 1 if limits.tokens is None else -(-len(order) // _PLANNED_TOGETHER)
    for part in range(num_parts):
        some = order[part::num_parts]
        plan = plan_micro_batches([lengths[index] for index in some], limits)
        batches += [[some[place] for place in batch] for batch in plan]
    return batches


def _moved(batch: Batch, device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
