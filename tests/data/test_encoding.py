"""Ids and labels of rows in pieces, against the plain way to make them: prefix by prefix."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lorafit.data.chat import Segment
from lorafit.data.dataset import IGNORED_LABEL
from lorafit.data.encoding import Encoder


def encoded(tokenizer: Any, segments: list[Segment]) -> tuple[list[int], list[int]]:
    [(ids, labels)] = Encoder(tokenizer).encode([segments])
    return ids.tolist(), labels.tolist()


def by_prefixes(tokenizer: Any, segments: list[Segment]) -> tuple[list[int], list[int]]:
    """Return ids and labels as the rules define them, by calls of the tokenizer itself."""

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    texts = [segment.text for segment in segments]
    prefixes = [ids_of("".join(texts[: end + 1])) for end in range(len(texts))]
    whole = prefixes[-1]
    if all(whole[: len(prefix)] == prefix for prefix in prefixes):
        starts = [0, *map(len, prefixes[:-1])]
        parts = [whole[start : len(prefix)] for start, prefix in zip(starts, prefixes, strict=True)]
    else:
        parts = [ids_of(text) for text in texts]
    ids, labels = [], []
    for segment, part in zip(segments, parts, strict=True):
        ids += part
        labels += part if segment.is_trained else [IGNORED_LABEL] * len(part)
    begin = tokenizer("x")["input_ids"][:1]
    if begin == [tokenizer.bos_token_id] and ids[:1] != begin:
        ids, labels = begin + ids, [IGNORED_LABEL, *labels]
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids, labels = [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]
    return ids, labels


def conversation(*turns: str) -> list[Segment]:
    """Return the segments of a conversation whose every second turn is learnt."""
    return [
        Segment(f"<|im_start|>{turn}<|im_end|>\n", number % 2 == 1)
        for number, turn in enumerate(turns)
    ]


PIECES = st.text(st.sampled_from("ab cé\n<|>im_start endoftext"), max_size=12)


@hypothesis_settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(PIECES, st.booleans()), min_size=1, max_size=7), st.booleans())
def test_tokens_are_those_of_the_rules_however_many_pieces_there_are(
    tokenizer, tokenizer_with_bos, pieces, begins
):
    chosen = tokenizer_with_bos if begins else tokenizer
    segments = [Segment(text, is_trained) for text, is_trained in pieces]
    ids, labels = encoded(chosen, segments)
    assert (ids, labels) == by_prefixes(chosen, segments)


def test_a_long_conversation_is_tokenized_twice_and_not_once_for_each_turn(tokenizer, monkeypatch):
    segments = conversation(*(f"turn {number} says yes" for number in range(40)))
    encoder = Encoder(tokenizer)
    asked: list[str] = []

    def ids_of(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return Encoder._ids(encoder, texts)

    monkeypatch.setattr(encoder, "_ids", ids_of)
    [(ids, _)] = encoder.encode([segments])
    length = sum(len(segment.text) for segment in segments)
    assert sum(map(len, asked)) == 2 * length
    assert ids.tolist() == by_prefixes(tokenizer, segments)[0]
    assert encoder.num_separate == 0


def test_pieces_that_are_different_tokens_alone_keep_those_of_the_whole():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # As SentencePiece has it: what begins a text gets a mark that it has not inside one.
    words = ["</s>", "<unk>", "▁", "a", "b", "▁a", "▁b"]
    backend = Tokenizer(
        models.Unigram([(word, -1.0) for word in words], unk_id=1, byte_fallback=False)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    marking = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    segments = [Segment(text, text == "b") for text in ("a", "b", "a", "b", "a")]
    encoder = Encoder(marking)
    [(ids, labels)] = encoder.encode([segments])
    assert (ids.tolist(), labels.tolist()) == by_prefixes(marking, segments)
    assert marking.convert_ids_to_tokens(ids.tolist()) == ["▁a", "b", "a", "b", "a", "</s>"]
    assert encoder.num_separate == 0


@pytest.mark.parametrize("splits", [False, True])
def test_what_others_asked_of_the_tokenizer_before_does_not_count(build_tokenizer, splits):
    used = build_tokenizer()
    used.pad_token = used.eos_token
    used.split_special_tokens = splits
    segments = [Segment("Question: <|endoftext|> ", False), Segment("yes no yes", True)]
    encoder = Encoder(used)
    used(["hello there", "yes"], padding="max_length", max_length=6, truncation=True)
    [(ids, labels)] = encoder.encode([segments])
    fresh = build_tokenizer()
    fresh.split_special_tokens = splits
    assert (ids.tolist(), labels.tolist()) == by_prefixes(fresh, segments)
    assert (used.eos_token_id in ids[:-1]) is not splits


def test_a_tokenizer_that_does_more_than_its_compiled_part_is_called_itself(build_tokenizer):
    from transformers import PreTrainedTokenizerFast

    class Shouting(PreTrainedTokenizerFast):
        def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
            louder = text.upper() if isinstance(text, str) else [each.upper() for each in text]
            return super().__call__(louder, *args, **options)

    shouting = Shouting(tokenizer_object=build_tokenizer().backend_tokenizer, eos_token="<|END|>")
    ids, _ = encoded(shouting, [Segment("hello", True)])
    assert shouting.decode(ids) == "HELLO<|END|>"
