"""A model to evaluate or to write with: base, adapter if there is one, tokenizer, device."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorafit.config.schema import Settings
from lorafit.hardware.capabilities import verify_supported
from lorafit.hardware.info import DeviceInfo
from lorafit.hardware.precision import choose_compute_dtype
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
    model = load_adapter(base, adapter) if adapter is not None else base.eval()
    chunked = choose_loss(base, settings).value
    if chunked:
        install_chunked_loss(base)
    pad = choose_pad_token(tokenizer)
    return LoadedModel(model, tokenizer, pad, torch_device, dtype.reason, chunked)
