from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lorafit.config.schema import Settings
from lorafit.data.dataset import IGNORED_LABEL
from lorafit.data.records import Record
from lorafit.data.tokenize import check_max_length, tokenize_records, verify_dropped
from lorafit.errors import ConfigError, DataError, ModelError

END = "<|endoftext|>"


def pair(prompt: str | None, completion: str, source: str = "rows.jsonl:1") -> Record:
    return Record(prompt, completion, None, None, source)


def learnt_text(dataset: Any, tokenizer: Any, index: int = 0) -> str:
    return tokenizer.decode([t for t in dataset[index]["labels"] if t != IGNORED_LABEL])


def whole_text(dataset: Any, tokenizer: Any, index: int = 0) -> str:
    return tokenizer.decode(dataset[index]["input_ids"])


def test_learns_the_completion_and_the_end_of_text_only(tokenizer, settings):
    dataset = tokenize_records([pair("Question:", "yes")], tokenizer, settings)
    assert whole_text(dataset, tokenizer) == f"Question: yes{END}"
    assert learnt_text(dataset, tokenizer) == f" yes{END}"


def test_learns_the_prompt_too_when_asked(tokenizer):
    settings = Settings(max_length=64, train_on_prompt=True)
    dataset = tokenize_records([pair("Question:", "yes")], tokenizer, settings)
    assert dataset[0]["labels"] == dataset[0]["input_ids"]


def test_learns_plain_text_whole(tokenizer, settings):
    dataset = tokenize_records([pair(None, "hello there")], tokenizer, settings)
    assert dataset[0]["labels"] == dataset[0]["input_ids"]
    assert whole_text(dataset, tokenizer) == f"hello there{END}"


def test_prompt_tokens_are_those_that_generation_will_read(tokenizer, settings):
    dataset = tokenize_records([pair("Question: ", "yes")], tokenizer, settings)
    prompt_ids = tokenizer("Question:")["input_ids"]
    row = dataset[0]
    assert row["input_ids"][: len(prompt_ids)] == prompt_ids
    assert row["labels"][len(prompt_ids)] == row["input_ids"][len(prompt_ids)]
    assert row["labels"][len(prompt_ids) - 1] == IGNORED_LABEL


def test_parts_are_tokenized_apart_where_tokens_would_cross_the_boundary(settings):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {END: 0, "a": 1, " ": 2, "b": 3, "a ": 4, "a b": 5}
    merges = [("a", " "), ("a ", "b")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    greedy = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    assert greedy("a b")["input_ids"] == [5]
    dataset = tokenize_records([pair("a", "b")], greedy, settings)
    assert dataset[0] == {"input_ids": [1, 2, 3, 0], "labels": [-100, 2, 3, 0]}
    assert dataset.counts.separately_tokenized == 1


def test_adds_the_begin_token_where_the_tokenizer_does_and_never_learns_it(
    tokenizer_with_bos, settings
):
    dataset = tokenize_records([pair("Question:", "yes")], tokenizer_with_bos, settings)
    row = dataset[0]
    assert row["input_ids"][0] == tokenizer_with_bos.bos_token_id
    assert row["labels"][0] == IGNORED_LABEL
    assert row["input_ids"].count(tokenizer_with_bos.bos_token_id) == 1


def test_does_not_end_a_row_twice(tokenizer, settings):
    dataset = tokenize_records([pair("Question:", f"yes{END}")], tokenizer, settings)
    assert dataset[0]["input_ids"].count(tokenizer.eos_token_id) == 1
    assert dataset[0]["labels"][-1] == tokenizer.eos_token_id


@pytest.mark.row("B43")
def test_b43_counts_rows_that_are_cut_and_keeps_their_beginning(tokenizer):
    settings = Settings(max_length=8)
    records = [pair("Question:", "yes " * 50), pair("Q", "a")]
    dataset = tokenize_records(records, tokenizer, settings)
    assert dataset.counts.truncated == 1
    assert dataset.lengths[0] == 8
    assert dataset[0]["labels"][-1] != tokenizer.eos_token_id
    assert sorted(dataset.full_lengths)[-1] > 8
    assert dataset.full_lengths.total() == 2


@pytest.mark.row("B43")
def test_b43_drops_and_counts_a_row_whose_prompt_fills_max_length(tokenizer):
    settings = Settings(max_length=8, max_dropped=0.5)
    records = [pair("long question " * 20, "yes", "rows.jsonl:1"), pair("Q", "a", "rows.jsonl:2")]
    dataset = tokenize_records(records, tokenizer, settings)
    assert (dataset.counts.rows, dataset.counts.dropped) == (1, 1)
    assert dataset.records[0].source == "rows.jsonl:2"
    verify_dropped(dataset.counts, 0, settings, "rows.jsonl")


@pytest.mark.row("B43")
def test_b43_refuses_when_more_rows_are_dropped_than_allowed(tokenizer):
    settings = Settings(max_length=8, max_dropped=0.1)
    records = [pair("long question " * 20, "yes", "rows.jsonl:1"), pair("Q", "a", "rows.jsonl:2")]
    dataset = tokenize_records(records, tokenizer, settings)
    with pytest.raises(DataError, match=r"1 of 2 rows .* the first dropped row is rows.jsonl:1"):
        verify_dropped(dataset.counts, 0, settings, "rows.jsonl")


@pytest.mark.row("B43")
def test_b43_refuses_when_no_row_is_left_whatever_max_dropped_says(tokenizer):
    settings = Settings(max_length=8, max_dropped=1.0)
    dataset = tokenize_records([pair("long question " * 20, "yes")], tokenizer, settings)
    with pytest.raises(DataError, match="no row is left"):
        verify_dropped(dataset.counts, 0, settings, "rows.jsonl")


@pytest.mark.row("B45")
def test_b45_counts_special_tokens_written_in_the_data(tokenizer, settings):
    records = [pair("Q", "a", "rows.jsonl:1"), pair(f"x {END} y", "b", "rows.jsonl:2")]
    counts = tokenize_records(records, tokenizer, settings).counts
    assert counts.special_text_rows == 1
    assert counts.first_special_text == f"{END} in rows.jsonl:2"


def test_counts_repeated_rows_and_supervised_tokens(tokenizer, settings):
    dataset = tokenize_records([pair("Q", "a"), pair("Q", "a")], tokenizer, settings)
    assert dataset.counts.duplicates == 1
    learnt = sum(label != IGNORED_LABEL for i in (0, 1) for label in dataset[i]["labels"])
    assert dataset.counts.supervised_tokens == learnt
    assert dataset.counts.tokens == sum(dataset.lengths)


def test_refuses_a_tokenizer_that_cannot_say_stop(build_tokenizer, settings):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        tokenize_records([pair("Q", "a")], tokenizer, settings)


class Config:
    max_position_embeddings = 2048


class MultimodalConfig:
    text_config = Config()


@pytest.mark.row("B33")
@pytest.mark.parametrize("config", [Config(), MultimodalConfig()])
def test_b33_refuses_a_max_length_beyond_the_models_context(config):
    check_max_length(Settings(max_length=2048), config)
    with pytest.raises(ConfigError, match="2049 is more than the 2048 positions") as caught:
        check_max_length(Settings(max_length=2049), config)
    assert caught.value.hint == "--max-length 2048 at most"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@hypothesis_settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.none() | TEXTS, TEXTS), min_size=1, max_size=4), st.booleans())
def test_labels_are_the_ids_or_ignored_and_end_of_text_is_learnt(tokenizer, rows, on_prompt):
    settings = Settings(max_length=16, train_on_prompt=on_prompt)
    dataset = tokenize_records([pair(*row) for row in rows], tokenizer, settings)
    for index, length in enumerate(dataset.lengths):
        row = dataset[index]
        assert len(row["labels"]) == len(row["input_ids"]) == length <= 16
        pairs = zip(row["input_ids"], row["labels"], strict=True)
        assert all(label in (IGNORED_LABEL, token) for token, label in pairs)
        if length < 16:
            assert row["labels"][-1] == tokenizer.eos_token_id
    counts = dataset.counts
    assert counts.rows + counts.dropped == len(rows)
