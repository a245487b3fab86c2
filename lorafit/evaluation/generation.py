"""Writing text with a model: prompts in, continuations out, in batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorafit.data.encoding import encode_prompt

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token, so that the same prompt gives the same text."""
    top_p: float = 1.0
    """Smallest probability mass to sample from; used above temperature 0."""


@torch.no_grad()
def generate_texts(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    pad_token_id: int,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return the continuation of each prompt, without the prompt and without special tokens.

    Prompts are taken longest first, padded on the left, so that every row ends where writing
    begins.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]), reverse=True)
    texts = [""] * len(prompts)
    try:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = [encoded[i] or [tokenizer.eos_token_id] for i in chosen]
            written = _generate_batch(model, tokenizer, rows, sampling, pad_token_id, device)
            for index, tokens in zip(chosen, written, strict=True):
                texts[index] = str(tokenizer.decode(tokens, skip_special_tokens=True))
            if progress is not None:
                progress(min(start + batch_size, len(order)), len(order))
    finally:
        model.train(was_training)
    return texts


def _generate_batch(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[list[int]],
    sampling: Sampling,
    pad_token_id: int,
    device: torch.device,
) -> list[list[int]]:
    from transformers import GenerationConfig

    length = max(map(len, rows))
    input_ids = torch.tensor([[pad_token_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    choice = (
        {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.temperature > 0
        else {"do_sample": False}
    )
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=True,
        **choice,
    )
    output = model.generate(  # type: ignore[operator]  # transformers' mixin, unknown to nn.Module
        input_ids=input_ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        # With sharded weights it would ask the other processes, who do not generate, see
        # training/sharding.
        synced_gpus=False,
    )
    return [_until_end(row, tokenizer.eos_token_id) for row in output[:, length:].tolist()]


def _until_end(tokens: list[int], eos_token_id: int) -> list[int]:
    return tokens[: tokens.index(eos_token_id)] if eos_token_id in tokens else tokens
