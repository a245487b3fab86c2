"""Token ids and labels of texts that are trained in part; the only place that calls a tokenizer."""

from array import array
from collections.abc import Sequence
from typing import Any

from lorafit.data.chat import Segment
from lorafit.data.dataset import IGNORED_LABEL
from lorafit.errors import ModelError


class Encoder:
    """Turns segments into ids and labels, many rows a call.

    `num_separate` counts the rows whose parts had to be tokenized apart.

    Raises:
        ModelError: the tokenizer has no end-of-text token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end-of-text token, so the model could not learn to stop",
                hint="set eos_token in the model's tokenizer_config.json",
            )
        self._tokenizer = tokenizer
        self._eos = int(tokenizer.eos_token_id)
        self._bos = begin_tokens(tokenizer)
        self.num_separate = 0

    def encode(self, rows: Sequence[list[Segment]]) -> list[tuple["array[int]", "array[int]"]]:
        """Return ids and labels of each row, with begin and end-of-text, uncut."""
        if not rows:
            return []
        texts = [text for segments in rows for text in _prefixes(segments)]
        ids_of_prefixes = iter(self._ids(texts))
        encoded = []
        for segments in rows:
            prefixes = [next(ids_of_prefixes) for _ in segments]
            encoded.append(self._label(segments, self._parts(segments, prefixes)))
        return encoded

    def _ids(self, texts: list[str]) -> list[list[int]]:
        batch = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = batch["input_ids"]
        return ids

    def _parts(self, segments: list[Segment], prefixes: list[list[int]]) -> list[list[int]]:
        full = prefixes[-1]
        if all(full[: len(prefix)] == prefix for prefix in prefixes):
            starts = [0, *(len(prefix) for prefix in prefixes[:-1])]
            ends = [len(prefix) for prefix in prefixes]
            return [full[start:end] for start, end in zip(starts, ends, strict=True)]
        self.num_separate += 1
        return self._ids([segment.text for segment in segments])

    def _label(
        self, segments: list[Segment], parts: list[list[int]]
    ) -> tuple["array[int]", "array[int]"]:
        ids, labels = array("i"), array("i")
        for segment, part in zip(segments, parts, strict=True):
            ids.extend(part)
            labels.extend(part if segment.is_trained else [IGNORED_LABEL] * len(part))
        if self._bos and ids[:1].tolist() != self._bos:
            ids.insert(0, self._bos[0])
            labels.insert(0, IGNORED_LABEL)
        if not ids or ids[-1] != self._eos:
            ids.append(self._eos)
            labels.append(self._eos)
        return ids, labels


def begin_tokens(tokenizer: Any) -> list[int]:
    """Return the token that this tokenizer begins every text with, in a list; empty if none."""
    start: list[int] = tokenizer("x", verbose=False)["input_ids"][:1]
    adds_bos = tokenizer.bos_token_id is not None and start == [tokenizer.bos_token_id]
    return start if adds_bos else []


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of a prompt as the model read it in training."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    begin = begin_tokens(tokenizer)
    return ids if not begin or ids[:1] == begin else begin + ids


def _prefixes(segments: list[Segment]) -> list[str]:
    text, prefixes = "", []
    for segment in segments:
        text += segment.text
        prefixes.append(text)
    return prefixes
