"""Choosing on `meta` the operators that a GPU, or a CPU, would choose.

A few composite functions look at the device and take another path on CUDA. They are caught
before they are decomposed, and sent where CUDA sends them:

- `scaled_dot_product_attention` → the flash, cuDNN, memory-efficient or math operator;
- `dropout` → `native_dropout`, which keeps a bool mask (aten/src/ATen/native/Dropout.cpp);
- `softmax(half, dtype=float32)` → one fused operator for fp16 (aten/src/ATen/native/SoftMax.cpp);
  bf16 is converted first, on CUDA as anywhere.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Self
from unittest import mock

import torch
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import _disable_current_modes

from lorafit.memory.gpu import GpuTraits

_aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)


class CudaOperators(contextlib.ExitStack):
    """Take CUDA's paths while entered.

    The functions are replaced where they are looked up. A function mode would not do: it is off
    inside backward, where checkpoints run their forward again.

    Args:
        gpu: the GPU whose operators are chosen.
        efficient_attention: restrict attention to the memory-efficient operator, as
            `attn_implementation=sdpa-efficient` does.
    """

    def __init__(self, gpu: GpuTraits, *, efficient_attention: bool = False) -> None:
        super().__init__()
        self._gpu = gpu
        self._efficient_only = efficient_attention

    def __enter__(self) -> Self:
        functional = torch.nn.functional
        self._replace(functional, "scaled_dot_product_attention", self._attention)
        self._replace(functional, "dropout", _dropout)
        self._replace(torch, "dropout", _dropout)
        for owner in (functional, torch, torch.Tensor):
            self._replace(owner, "softmax", _softmax)
        if self._efficient_only:
            from transformers.integrations import sdpa_attention

            # The memory-efficient operator takes no grouped heads: they are repeated before it.
            self._replace(sdpa_attention, "use_gqa_in_sdpa", lambda *args: False)
        return super().__enter__()

    def _replace(self, owner: Any, name: str, handler: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def choose(*args: Any, **kwargs: Any) -> Any:
            result = handler(*args, **kwargs)
            return original(*args, **kwargs) if result is NotImplemented else result

        self.enter_context(mock.patch.object(owner, name, choose))

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        if query.device.type != "meta":
            return NotImplemented
        grouped = enable_gqa and key.shape[-3] != query.shape[-3]
        operator = self._gpu.attention_operator(
            head_dim=query.shape[-1],
            is_half=query.dtype in _HALF,
            is_bfloat16=query.dtype == torch.bfloat16,
            has_mask=attn_mask is not None,
            grouped=grouped,
            efficient_only=self._efficient_only,
            dropout=dropout_p,
        )
        if operator == "math":
            return NotImplemented
        if operator == "efficient":
            mask = _expand_mask(attn_mask, query, key)
            needs_grad = query.requires_grad or key.requires_grad or value.requires_grad
            return _aten._scaled_dot_product_efficient_attention(
                query, key, value, mask, needs_grad, dropout_p, is_causal, scale=scale
            )[0]
        if operator == "cudnn":
            additive = None if attn_mask is None else _additive(attn_mask, query.dtype)
            return _aten._scaled_dot_product_cudnn_attention(
                query, key, value, additive, True, dropout_p, is_causal, False, scale=scale
            )[0]
        return _flash(query, key, value, dropout_p, is_causal, scale)


class CpuOperators(contextlib.ExitStack):
    """Take the CPU's path through `scaled_dot_product_attention` while entered."""

    def __enter__(self) -> Self:
        functional = torch.nn.functional
        original = functional.scaled_dot_product_attention

        def choose(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            attn_mask: torch.Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Any:
            tensors = (query, key, value)
            if query.device.type != "meta" or not _is_fused_on_cpu(
                tensors, attn_mask, dropout_p, is_causal, scale, enable_gqa
            ):
                return original(*tensors, attn_mask, dropout_p, is_causal, scale, enable_gqa)
            mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
            return _aten._scaled_dot_product_flash_attention_for_cpu(
                *tensors, dropout_p, is_causal, attn_mask=mask, scale=scale
            )[0]

        self.enter_context(mock.patch.object(functional, "scaled_dot_product_attention", choose))
        return super().__enter__()


def _is_fused_on_cpu(
    tensors: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> bool:
    """Ask PyTorch, with small tensors of the same kind."""
    with _disable_current_modes():
        query, key, value = (
            torch.empty(1, tensor.shape[1], 2, tensor.shape[3], dtype=tensor.dtype).requires_grad_(
                tensor.requires_grad
            )
            for tensor in tensors
        )
        small_mask = None if mask is None else torch.zeros(1, 1, 2, 2, dtype=mask.dtype)
        choice: int = torch._fused_sdp_choice(
            query, key, value, small_mask, dropout, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    return choice == SDPBackend.FLASH_ATTENTION.value


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    # Flash wants head sizes of a multiple of 8 (pad_last_dim in transformers/attention.cpp).
    head_dim = query.shape[-1]
    missing = -head_dim % 8
    if missing:
        scale = head_dim**-0.5 if scale is None else scale
        query, key, value = (
            torch.nn.functional.pad(tensor, (0, missing)) for tensor in (query, key, value)
        )
    output = _aten._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    result: torch.Tensor = output[..., :head_dim] if missing else output
    return result


def _expand_mask(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
) -> torch.Tensor | None:
    """Prepare a mask as `preprocess_mask` in transformers/attention.cpp."""
    if mask is None:
        return None
    mask = _additive(mask, query.dtype)
    if mask.shape[-1] % 16:
        mask = torch.nn.functional.pad(mask, (0, 16 - mask.shape[-1] % 16))[..., : key.shape[-2]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return -inf where a bool mask hides, as `convert_boolean_attn_mask`."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


def _dropout(
    input: torch.Tensor,  # the name that callers use
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    **train: bool,
) -> Any:
    training = train.get("train", training)
    if not training or p == 0 or inplace or input.device.type != "meta":
        return NotImplemented
    return _aten.native_dropout(input, p, True)[0]


def _softmax(
    input: torch.Tensor,
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Any:
    fused = input.dtype == torch.float16 and dtype == torch.float32 and dim is not None
    if not fused or input.device.type != "meta":
        return NotImplemented
    return _aten._softmax(input, dim, True)
