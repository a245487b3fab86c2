"""Batches: rows of different lengths, padded on the right to one tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorafit.data.dataset import IGNORED_LABEL

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Collator:
    """Pads rows to the longest of a batch, or to a fixed length.

    Padding is told apart by its position and never by its id: where the pad token is also the
    end-of-text token, the end-of-text of each row keeps its attention and its label.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1
    """Lengths are rounded up to a multiple: few shapes mean few compilations and allocations."""
    locate_targets: bool = False
    """Add where the targets are, for the chunked loss: found here, on the CPU, they cost the
    device no wait."""
    fixed_length: int | None = None
    """Pad every batch to this many tokens, for devices that pay for each new shape."""

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> "dict[str, torch.Tensor]":
        """Return `input_ids`, `attention_mask` and `labels`, each int64 of shape [rows, tokens].

        With `locate_targets`, also `target_positions` and `targets`, see
        `lorafit.model.loss.locate_targets`.
        """
        import torch

        length = self.padded_length(max(len(row["input_ids"]) for row in rows))
        columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in rows:
            num_tokens = len(row["input_ids"])
            num_pads = length - num_tokens
            columns["input_ids"].append([*row["input_ids"], *[self.pad_token_id] * num_pads])
            columns["attention_mask"].append([1] * num_tokens + [0] * num_pads)
            columns["labels"].append([*row["labels"], *[IGNORED_LABEL] * num_pads])
        batch = {name: torch.tensor(values) for name, values in columns.items()}
        if self.locate_targets:
            from lorafit.model.loss import locate_targets

            batch |= locate_targets(batch["labels"], IGNORED_LABEL)
        return batch

    def padded_length(self, longest: int) -> int:
        """Return the tokens that a batch is padded to when its longest row has `longest`."""
        if self.fixed_length is not None:
            return max(self.fixed_length, longest)
        multiple = self.pad_to_multiple_of
        return -(-longest // multiple) * multiple
