"""Validation loss: the exact mean over all targets of a data set, however it is batched."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from lorafit.model.step import count_supervised, micro_batch_loss

if TYPE_CHECKING:
    from torch import nn

Batch = Mapping[str, torch.Tensor]


class Rows(Protocol):
    """Tokenized rows, such as a `lorafit.data.dataset.TokenizedDataset`."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: int) -> Mapping[str, Sequence[int]]:
        """Return `input_ids` and `labels` of a row."""


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
    batch_size: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> LossReport:
    """Return the mean loss over `rows`, in evaluation mode; restores the training mode.

    Rows are taken longest first: an out-of-memory error then comes with the first batch, and
    batches hold rows of like length, so that little padding is computed.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]), reverse=True)
    starts = range(0, len(order), batch_size)
    total, num_targets = 0.0, 0
    try:
        for done, start in enumerate(starts, 1):
            batch = collate([rows[i] for i in order[start : start + batch_size]])
            targets = count_supervised(batch["labels"])
            moved = {name: tensor.to(device) for name, tensor in batch.items()}
            # One target as the divisor gives the sum, which is then exact over batches.
            total += float(micro_batch_loss(model, moved, 1)) if targets else 0.0
            num_targets += targets
            if progress is not None:
                progress(done, len(starts))
    finally:
        model.train(was_training)
    loss = total / num_targets if num_targets else math.nan
    return LossReport(loss, _perplexity(loss), len(rows), num_targets)


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
