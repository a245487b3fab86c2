"""In what form rows reach the model: padded, end to end, or packed into bins first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorafit.config.batch import BatchPlan
from lorafit.data.collate import Collator, EndToEndCollator
from lorafit.data.dataset import TokenizedDataset
from lorafit.data.micro_batches import MicroBatchLimits, Row, token_budget, token_multiple
from lorafit.data.packing import PackedDataset, Packing
from lorafit.hardware.info import Choice, DeviceKind
from lorafit.memory.planner import PAD_TO_MULTIPLE

if TYPE_CHECKING:
    from lorafit.model.attention import BlockAttention


@dataclass(frozen=True)
class Batching:
    """How the rows of a step become micro-batches, decided; see `plan_batching`."""

    attention: "Choice[BlockAttention | None]"
    """What keeps rows end to end apart; None where they are padded."""
    limits: MicroBatchLimits
    limits_reason: str
    lengths: Choice[tuple[int, ...]]
    """Padded: the lengths that micro-batches are padded to; empty: multiples of
    `PAD_TO_MULTIPLE`."""
    packing: Packing | None
    longest_row: int
    device_kind: DeviceKind

    def collator(
        self, pad_token_id: int, *, locate_targets: bool
    ) -> Callable[[Sequence[Row]], dict[str, Any]]:
        """Return what makes a micro-batch of rows, in training and in validation."""
        if self.attention.value is None:
            return Collator(
                pad_token_id,
                pad_to_multiple_of=PAD_TO_MULTIPLE,
                lengths=self.lengths.value,
                locate_targets=locate_targets,
            )
        return EndToEndCollator(
            pad_token_id,
            longest=self.longest_row,
            pad_to_multiple_of=token_multiple(self.device_kind),
            by_document=self.attention.value == "documents",
        )

    @property
    def eval_rows(self) -> int:
        """Rows of a validation batch that take no more tokens than a micro-batch does."""
        if self.limits.tokens is None:
            return self.limits.units
        return max(1, self.limits.tokens // self.longest_row)

    def eval_limits(self, rows: int) -> MicroBatchLimits:
        """Return what a validation batch of so many full rows may take.

        End to end, `eval_rows` of them take the tokens of a micro-batch, and others in proportion.
        """
        if self.limits.tokens is None:
            return MicroBatchLimits(rows)
        tokens = max(1, self.limits.tokens * rows // self.eval_rows)
        return replace(self.limits, units=rows, tokens=tokens)

    def dataset(self, rows: TokenizedDataset) -> TokenizedDataset | PackedDataset:
        """Return what the effective batch counts: rows, or bins of them."""
        return rows if self.packing is None else PackedDataset(rows, self.packing)

    def reasons(self) -> dict[str, str]:
        """Return the reason of every choice."""
        reasons = {"padding_free": self.attention.reason, "micro_batches": self.limits_reason}
        if self.packing is not None:
            reasons["packing"] = self.packing.describe()
        return reasons


def plan_batching(
    attention: "Choice[BlockAttention | None]",
    batch: BatchPlan,
    row_lengths: Sequence[int],
    packing: Packing | None,
    device_kind: DeviceKind,
) -> Batching:
    """Return how the rows of a step become micro-batches.

    Args:
        attention: what keeps rows end to end apart, if anything does.
        batch: rows or bins of a micro-batch.
        row_lengths: tokens of each row.
        packing: bins, if rows are packed.
        device_kind: where it runs.
    """
    units = batch.per_device_train_batch_size
    longest_row = max(row_lengths)
    lengths = Choice[tuple[int, ...]]((), f"to a multiple of {PAD_TO_MULTIPLE} tokens")
    if attention.value is None:
        if device_kind == "mps":
            lengths = few_lengths(longest_row)
        limits = MicroBatchLimits(units)
        reason = f"{units} rows a micro-batch, in the order of the step, padded {lengths.reason}"
    else:
        longest = max(packing.tokens) if packing is not None else longest_row
        padded = -(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
        tokens, reason = token_budget(units, padded, device_kind)
        limits = MicroBatchLimits(units, tokens, token_multiple(device_kind))
    return Batching(attention, limits, reason, lengths, packing, longest_row, device_kind)


_NUM_LENGTHS = 8


def few_lengths(longest_row: int) -> Choice[tuple[int, ...]]:
    """Return the few lengths that rows are padded to, for a device that pays for each new one.

    They are evenly spaced, so that at most an eighth of the longest row is padding beyond that
    of the micro-batch itself.
    """
    spacing = -(-longest_row // (_NUM_LENGTHS * PAD_TO_MULTIPLE)) * PAD_TO_MULTIPLE
    last = -(-longest_row // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    lengths = [*range(spacing, last, spacing), last]
    return Choice(
        tuple(lengths),
        f"to one of {len(lengths)} lengths: Metal keeps memory for every shape it has seen",
    )
