"""Forced choice: which of several continuations a model finds likeliest."""

from collections.abc import Sequence

import torch

from lorafit.data.encoding import encode_prompt
from lorafit.evaluation.loading import LoadedModel


@torch.no_grad()
def choose_continuations(
    loaded: LoadedModel, contexts: Sequence[str], options: Sequence[str], batch_size: int = 64
) -> list[str]:
    """Return, for each context, the option with the highest mean log-probability a token.

    The mean, not the sum, so that a label of many tokens stands the same chance as a short one.
    A model that never writes a label can still be asked which one it prefers.
    """
    pairs = [(context, option) for context in contexts for option in options]
    scores: list[float] = []
    for start in range(0, len(pairs), batch_size):
        scores += _score(loaded, pairs[start : start + batch_size])
    width = len(options)
    rows = [scores[i : i + width] for i in range(0, len(scores), width)]
    return [options[row.index(max(row))] for row in rows]


def _score(loaded: LoadedModel, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the mean log-probability of each option after its context."""
    rows, starts = [], []
    for context, option in pairs:
        before = encode_prompt(loaded.tokenizer, context)
        after = loaded.tokenizer(option, add_special_tokens=False)["input_ids"]
        rows.append(before + after)
        starts.append(len(before))
    length = max(map(len, rows))
    pad = loaded.pad.token_id
    input_ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    input_ids, mask = input_ids.to(loaded.device), mask.to(loaded.device)
    logits = loaded.model(input_ids=input_ids, attention_mask=mask).logits[:, :-1]  # [B, T-1, V]
    log_probabilities = logits.float().log_softmax(-1)
    picked = log_probabilities.gather(-1, input_ids[:, 1:, None]).squeeze(-1)  # [B, T-1]
    return [
        float(picked[i, start - 1 : len(row) - 1].mean())
        for i, (start, row) in enumerate(zip(starts, rows, strict=True))
    ]
