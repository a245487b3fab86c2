"""The tokenizer of a base model, from its folder, running no code."""

from typing import TYPE_CHECKING, Any, NamedTuple

from lorafit.config.schema import Settings
from lorafit.errors import ModelError
from lorafit.text import excerpt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafit.model.source import ModelSource

_UNEMBEDDED = "_lorafit_unembedded"
"""Attribute of a tokenizer: its tokens that the model has no embedding for."""


class PadToken(NamedTuple):
    """The id that fills short rows, and why it is this one."""

    token_id: int
    reason: str


def load_tokenizer(settings: Settings) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of `settings.model`.

    Raises:
        ModelError: the model cannot be found or its tokenizer cannot be read.
    """
    from lorafit.model.source import locate_model

    return tokenizer_of(locate_model(settings.model, settings.revision, need_weights=False))


def tokenizer_of(source: "ModelSource") -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a located model.

    Raises:
        ModelError: there is none, it cannot be read, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((source.path / name).is_file() for name in names):
        raise ModelError(
            "has no tokenizer (looked for tokenizer.json, tokenizer.model, vocab.json)",
            where=str(source.path),
            hint="copy the tokenizer files of the model into this folder",
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as problem:  # tokenizers raises bare Exception for a damaged file
        raise ModelError(
            f"its tokenizer cannot be read: {excerpt(str(problem), 200)}", where=str(source.path)
        ) from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "its tokenizer has no end-of-text token, so the model could not learn to stop",
            where=str(source.path),
        )
    _match_embedding(tokenizer, source)
    return tokenizer


def _match_embedding(tokenizer: Any, source: "ModelSource") -> None:
    """Note on the tokenizer which special tokens the model does not embed; refuse any other.

    Gemma 3's tokenizer has a placeholder for images that its models of text alone do not embed:
    harmless, as long as no text has it.
    """
    text_config = source.config.get("text_config")
    config = text_config if isinstance(text_config, dict) else source.config
    vocabulary = config.get("vocab_size")
    if not isinstance(vocabulary, int) or len(tokenizer) <= vocabulary:
        return
    added = tokenizer.added_tokens_decoder.items()
    outside = [str(token) for token_id, token in added if token_id >= vocabulary and token.special]
    needed = {tokenizer.bos_token, tokenizer.eos_token}
    if len(tokenizer) - len(outside) > vocabulary or needed.intersection(outside):
        raise ModelError(
            f"its tokenizer has {len(tokenizer):,} tokens, but the model embeds {vocabulary:,}",
            where=str(source.path),
            hint="tokenizer and weights belong to different models",
        )
    setattr(tokenizer, _UNEMBEDDED, tuple(outside))


def unembedded_token(tokenizer: "PreTrainedTokenizerBase", text: str) -> str | None:
    """Return the first token in a text that the model does not embed; None where it can read it."""
    outside: tuple[str, ...] = getattr(tokenizer, _UNEMBEDDED, ())
    return next((token for token in outside if token in text), None)


def choose_pad_token(tokenizer: "PreTrainedTokenizerBase") -> PadToken:
    """Return the id for padding; padding is masked by position, so the id itself never matters."""
    eos = int(tokenizer.eos_token_id)
    own = tokenizer.pad_token
    if own is not None and unembedded_token(tokenizer, str(own)):
        return PadToken(
            eos,
            "the model has no embedding for the tokenizer's pad token: end-of-text fills the rows, "
            "masked by position, so that a true end-of-text is still learnt",
        )
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != eos:
        return PadToken(int(tokenizer.pad_token_id), "the tokenizer's own pad token")
    return PadToken(
        eos,
        "this tokenizer has no pad token of its own: end-of-text fills the rows, masked by "
        "position, so that a true end-of-text is still learnt",
    )
