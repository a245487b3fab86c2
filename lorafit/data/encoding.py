"""Token ids and labels of texts that are trained in part; the only place that calls a tokenizer."""

from array import array
from collections.abc import Sequence
from itertools import chain, islice, pairwise
from typing import Any

from lorafit.data.chat import Segment
from lorafit.data.dataset import IGNORED_LABEL
from lorafit.data.templates import RowError
from lorafit.errors import DataError, ModelError
from lorafit.model.tokenizer import unembedded_token
from lorafit.text import excerpt

_IGNORED = array("i", [IGNORED_LABEL])
_MANY_SEGMENTS = 3
"""Up to so many, a row's prefixes are hardly more text than its segments and the whole."""


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
        self._is_compiled = _is_compiled(tokenizer)
        self._eos = int(tokenizer.eos_token_id)
        self._bos = begin_tokens(tokenizer)
        self.num_separate = 0

    def encode(self, rows: Sequence[list[Segment]]) -> list[tuple["array[int]", "array[int]"]]:
        """Return ids and labels of each row, with begin and end-of-text, uncut."""
        if not rows:
            return []
        texts = [_texts_to_compare(segments) for segments in rows]
        ids_of_texts = iter(self._ids(list(chain.from_iterable(texts))))
        encoded = []
        for segments, compared in zip(rows, texts, strict=True):
            *parts, whole = islice(ids_of_texts, len(compared))
            encoded.append(self._label(segments, self._parts(segments, parts, whole)))
        return encoded

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if self._is_compiled:
            backend = self._tokenizer.backend_tokenizer
            # Whoever used this tokenizer before may have left these as they wanted them.
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = self._tokenizer.split_special_tokens
            # The same ids, without their places in the text.
            quick = backend.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in quick]
        batch = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = batch["input_ids"]
        return ids

    def _parts(
        self, segments: list[Segment], parts: list[list[int]], whole: list[int]
    ) -> list[list[int]]:
        """Return the ids of each segment; `parts` are those of `_texts_to_compare`."""
        if len(segments) > _MANY_SEGMENTS:
            if list(chain.from_iterable(parts)) == whole:
                return parts
            parts = self._ids(_prefixes(segments)[:-1])
        if all(whole[: len(prefix)] == prefix for prefix in parts):
            ends = [*map(len, parts), len(whole)]
            return [whole[start:end] for start, end in pairwise([0, *ends])]
        self.num_separate += 1
        return self._ids([segment.text for segment in segments])

    def _label(
        self, segments: list[Segment], parts: list[list[int]]
    ) -> tuple["array[int]", "array[int]"]:
        ids, labels = array("i"), array("i")
        if self._bos and next(chain.from_iterable(parts), None) != self._bos[0]:
            ids.append(self._bos[0])
            labels.append(IGNORED_LABEL)
        for segment, part in zip(segments, parts, strict=True):
            converted = array("i", part)
            ids += converted
            labels += converted if segment.is_trained else _IGNORED * len(part)
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
    """Return the ids of a prompt as the model read it in training.

    Raises:
        DataError: it holds a token that the model does not embed.
    """
    try:
        verify_embedded(tokenizer, prompt)
    except RowError as error:
        raise DataError(f"the prompt {error}", hint=error.hint) from None
    ids: list[int] = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
    begin = begin_tokens(tokenizer)
    return ids if not begin or ids[:1] == begin else begin + ids


def verify_embedded(tokenizer: Any, text: str) -> None:
    """Check that the model can read every token of a text.

    Raises:
        RowError: it holds a token that the model does not embed.
    """
    token = unembedded_token(tokenizer, text)
    if token is not None:
        raise RowError(
            f"holds {excerpt(token, 60)}, a token of the tokenizer that this model has no "
            "embedding for",
            "take it out of the text",
        )


def _is_compiled(tokenizer: Any) -> bool:
    """Return whether calling this tokenizer does no more than calling its compiled part."""
    from transformers import TokenizersBackend

    kind = type(tokenizer)
    return (
        isinstance(tokenizer, TokenizersBackend)
        and kind.__call__ is TokenizersBackend.__call__
        and kind._encode_plus is TokenizersBackend._encode_plus
    )


def _texts_to_compare(segments: list[Segment]) -> list[str]:
    """Return what tells where each segment begins in the tokens of the whole, and the whole.

    These are the row's prefixes. Of many segments, as long conversations have, it is the segments
    themselves: all prefixes would be half as many texts of full length as there are segments.
    """
    prefixes = _prefixes(segments)
    if len(segments) > _MANY_SEGMENTS:
        return [*(segment.text for segment in segments), prefixes[-1]]
    return prefixes


def _prefixes(segments: list[Segment]) -> list[str]:
    text, prefixes = "", []
    for segment in segments:
        text += segment.text
        prefixes.append(text)
    return prefixes
