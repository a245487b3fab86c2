"""Batches: rows of different lengths, padded on the right to one tensor, or laid end to end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

from lorafit.data.dataset import IGNORED_LABEL
from lorafit.data.micro_batches import tokens_read

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
    lengths: tuple[int, ...] = ()
    """Pad to the first of these, rising, that is long enough: for devices that pay for each new
    shape. Rows longer than all of them are padded to a multiple."""

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
        for length in self.lengths:
            if length >= longest:
                return length
        multiple = self.pad_to_multiple_of
        return -(-longest // multiple) * multiple


@dataclass(frozen=True)
class EndToEndCollator:
    """Lays rows end to end, as the documents of one row, for block-diagonal attention.

    See `lorafit.model.attention`. The tokens of a row from its last target on are left out: no loss
    depends on what the model makes of them. Tokens that only round the length up are a document of
    their own, without targets.
    """

    pad_token_id: int
    longest: int
    """Tokens of the longest row of the data: kernels are told one bound for all batches, so that
    nothing is compiled anew when a batch has other rows."""
    pad_to_multiple_of: int = 1
    by_document: bool = False
    """Say how long documents are, for attention that takes them one by one."""

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
        """Return one row of N tokens, which has D documents, as arguments of the model.

        `input_ids` and `position_ids` are int64 [1, N], positions from 0 in each document;
        `cu_seq_lens_q` and `cu_seq_lens_k` int32 [D+1], where documents begin; `max_length_q` and
        `max_length_k` a bound of their lengths; `target_positions` and `targets` int64 as
        `lorafit.model.loss` takes them; `document_lengths`, if asked for, a tuple of D integers.
        """
        import torch

        lengths = [tokens_read(row["labels"]) for row in rows]
        missing = -sum(lengths) % self.pad_to_multiple_of
        documents = [*lengths, missing] if missing else lengths
        read = [*zip(rows, lengths, strict=True)]
        ids = torch.tensor([*chain.from_iterable(row["input_ids"][:count] for row, count in read)])
        nexts = torch.tensor([*chain.from_iterable(_next_labels(*each) for each in read)])
        predicting = (nexts != IGNORED_LABEL).nonzero().squeeze(-1)
        ids = torch.nn.functional.pad(ids, (0, missing), value=self.pad_token_id)
        starts = torch.tensor([0, *accumulate(documents)])
        offsets = starts[:-1].repeat_interleave(starts.diff())
        bound = max(self.longest, *documents)
        batch: dict[str, Any] = {
            "input_ids": ids[None],
            "position_ids": (torch.arange(len(ids)) - offsets)[None],
            "cu_seq_lens_q": starts.to(torch.int32),
            "cu_seq_lens_k": starts.to(torch.int32),
            "max_length_q": bound,
            "max_length_k": bound,
            "target_positions": predicting,
            "targets": nexts[predicting],
        }
        if self.by_document:
            batch["document_lengths"] = tuple(documents)
        return batch


def _next_labels(row: Mapping[str, Sequence[int]], count: int) -> list[int]:
    """Return what each of a row's first tokens has to predict."""
    return [*row["labels"][1 : count + 1], IGNORED_LABEL][:count]
