"""The micro-batch that a trace runs: the largest one that training makes."""

from itertools import accumulate
from typing import Any, NamedTuple

import torch

from lorafit.config.schema import Settings
from lorafit.data.micro_batches import token_budget
from lorafit.hardware.info import DeviceKind
from lorafit.model import build
from lorafit.model.attention import ATTENTION_NAME, BlockAttention, choose_block_attention

_SHORT_ROW = 64
"""Tokens of the rows in a bin, where they are not known: their mean is seldom lower."""


class EndToEnd(NamedTuple):
    """Rows without padding: what computes their attention, and on what kind of device."""

    attention: BlockAttention
    device_kind: DeviceKind


def full_batch(
    model: Any,
    settings: Settings,
    device: torch.device,
    *,
    plain_script: bool,
    end_to_end: EndToEnd | None,
) -> dict[str, Any]:
    """Return a micro-batch of full rows, with what `data.collate.Collator` puts into one.

    Plain scripts pass the inputs as labels too, and no mask.
    """
    if end_to_end is not None:
        return _batch_end_to_end(settings, device, end_to_end)
    shape = (settings.per_device_train_batch_size, settings.max_length)
    inputs = torch.zeros(shape, dtype=torch.int64, device=device)
    if plain_script:
        return {"input_ids": inputs, "labels": inputs}
    batch = {
        "input_ids": inputs,
        "attention_mask": torch.ones_like(inputs),
        "labels": torch.zeros_like(inputs),
    }
    if build.choose_loss(model.get_base_model(), settings).value:
        # Every position but the last of a row predicts a token.
        positions = torch.arange(shape[0] * (shape[1] - 1), device=device)
        batch |= {"target_positions": positions, "targets": torch.zeros_like(positions)}
    return batch


def _batch_end_to_end(
    settings: Settings, device: torch.device, end_to_end: EndToEnd
) -> dict[str, Any]:
    """Return the largest micro-batch without padding, as `data.collate.EndToEndCollator` makes it.

    Memory depends on its tokens, not on how they are spread over rows, but for one thing: the
    backward of the varlen kernel rounds every row up. It gets as many rows as a step can have.
    """
    rows, length = settings.per_device_train_batch_size, settings.max_length
    num_tokens = token_budget(rows, length, end_to_end.device_kind).value
    by_document = end_to_end.attention == "documents"
    if by_document:
        lengths = [length] * (num_tokens // length)
        lengths += [num_tokens % length] if num_tokens % length else []
    else:
        num_rows = rows * settings.gradient_accumulation_steps
        if settings.packing:
            num_rows = max(num_rows, num_tokens // _SHORT_ROW)
        num_rows = min(num_rows, num_tokens // 2)
        lengths = [num_tokens - 2 * (num_rows - 1), *[2] * (num_rows - 1)]
    # Values matter to real kernels; on `meta` they are ignored.
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
    inputs = torch.zeros(1, num_tokens, dtype=torch.int64, device=device)
    positions = torch.arange(num_tokens - min(rows, len(lengths)), device=device)
    batch: dict[str, Any] = {
        "input_ids": inputs,
        "position_ids": torch.zeros_like(inputs),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts.clone(),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "target_positions": positions,
        "targets": torch.zeros_like(positions),
    }
    return batch | ({"document_lengths": tuple(lengths)} if by_document else {})


def choose_rows(
    model: Any,
    settings: Settings,
    kind: DeviceKind,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
) -> EndToEnd | None:
    """Return how rows go without padding on a device of this kind, if they do."""
    base = model.get_base_model()
    if base.config._attn_implementation != ATTENTION_NAME:
        return None
    attention = choose_block_attention(
        settings,
        base.config,
        loss=build.choose_loss(base, settings),
        device_kind=kind,
        compute_capability=capability,
        dtype=dtype,
    ).value
    return None if attention is None else EndToEnd(attention, kind)
