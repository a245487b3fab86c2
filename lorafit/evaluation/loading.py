"""A model to evaluate or to write with: base, adapter if there is one, tokenizer, device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator, EndToEndCollator
from lorafit.data.micro_batches import MicroBatchLimits, Row, token_multiple
from lorafit.hardware.capabilities import verify_supported
from lorafit.hardware.info import DeviceInfo
from lorafit.hardware.precision import choose_compute_dtype
from lorafit.model import attention
from lorafit.model.adapter import load_adapter, verify_adapter
from lorafit.model.build import choose_loss, load_base
from lorafit.model.libraries import prepare_libraries
from lorafit.model.loss import install_chunked_loss
from lorafit.model.source import locate_model
from lorafit.model.tokenizer import PadToken, choose_pad_token, tokenizer_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for inference."""

    model: "nn.Module"
    tokenizer: "PreTrainedTokenizerBase"
    pad: PadToken
    device: torch.device
    dtype_reason: str
    chunked_loss: bool
    """Whether batches have to say where the targets are."""
    block_attention: "attention.BlockAttention | None" = None
    """What keeps rows end to end apart; None where they are padded."""

    def batches(
        self, rows: int, longest: int
    ) -> tuple[Callable[[Sequence[Row]], dict[str, Any]], MicroBatchLimits]:
        """Return what makes a batch for the loss, and what it may take.

        Args:
            rows: how many full rows a batch may hold.
            longest: tokens of the longest row.
        """
        if self.block_attention is None:
            collate = Collator(self.pad.token_id, locate_targets=self.chunked_loss)
            return collate, MicroBatchLimits(rows)
        multiple = token_multiple("cuda" if self.device.type == "cuda" else "cpu")
        end_to_end = EndToEndCollator(
            self.pad.token_id,
            longest=longest,
            pad_to_multiple_of=multiple,
            by_document=self.block_attention == "documents",
        )
        return end_to_end, MicroBatchLimits(rows, rows * longest, multiple)


def load_for_inference(
    settings: Settings, device: DeviceInfo, adapter: Path | None = None
) -> LoadedModel:
    """Load the base model of `settings` and put `adapter` on it.

    Raises:
        ModelError: the base cannot be loaded.
        AdapterError: the adapter is damaged or belongs to another model.
        DeviceError: the device cannot do what the settings ask.
    """
    prepare_libraries()
    verify_supported(device, settings)
    source = locate_model(settings.model, settings.revision)
    assert source.weights is not None
    if adapter is not None:
        verify_adapter(adapter)
    dtype = choose_compute_dtype(
        device, settings.compute_dtype, source.model_type, source.weights.stored_dtype
    )
    tokenizer = tokenizer_of(source)
    torch_device = torch.device(device.torch_device)
    base = load_base(settings, source, getattr(torch, dtype.value), torch_device)
    base.requires_grad_(False)
    model = load_adapter(base, adapter) if adapter is not None else base.eval()
    loss = choose_loss(base, settings)
    if loss.value:
        install_chunked_loss(base)
    block_attention = attention.choose_block_attention(
        # Where it cannot be had, padded rows measure the same.
        settings.model_copy(update={"packing": False, "padding_free": _without_force(settings)}),
        base.config,
        loss=loss,
        device_kind=device.kind,
        compute_capability=device.compute_capability,
        dtype=getattr(torch, dtype.value),
    ).value
    pad = choose_pad_token(tokenizer)
    return LoadedModel(
        model, tokenizer, pad, torch_device, dtype.reason, loss.value, block_attention
    )


def _without_force(settings: Settings) -> str:
    return "false" if settings.padding_free == "false" else "auto"
