import hashlib
import json

import pytest

from lorafit.config.schema import Settings
from lorafit.data.load import load_source, load_training_data
from lorafit.errors import DataError, UsageError


def settings_for(path, **changes) -> Settings:
    return Settings(data=str(path), **{"max_length": 64, **changes})


def test_loads_splits_and_reports(tokenizer, write_rows, pairs):
    path = write_rows(pairs)
    data = load_training_data(settings_for(path), tokenizer)
    assert (len(data.train), len(data.validation)) == (18, 2)
    assert data.kind == "prompt-completion"
    assert data.labels_present is False
    assert data.report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert any("2 of 20 rows are held out" in line for line in data.report.lines())
    assert data.report.warnings == ()
    json.dumps(data.report.as_dict(), allow_nan=False)


def test_rows_feed_a_torch_data_loader(tokenizer, write_rows, pairs):
    from torch.utils.data import DataLoader

    from lorafit.data.collate import Collator

    data = load_training_data(settings_for(write_rows(pairs)), tokenizer)
    collate = Collator(pad_token_id=tokenizer.eos_token_id)
    batches = list(DataLoader(data.train, batch_size=4, collate_fn=collate))
    assert sum(len(batch["input_ids"]) for batch in batches) == 18
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == sum(data.train.lengths)


def test_loads_inference_rows_through_templates_with_their_labels(tokenizer, write_rows):
    rows = [
        {"premise": f"p{i}", "hypothesis": "h", "reasoning": "r", "label": i % 3} for i in range(9)
    ]
    settings = settings_for(
        write_rows(rows),
        prompt_template="Premise: {premise}\nHypothesis: {hypothesis}\nAnswer:",
        completion_template=" {reasoning} So: {label}",
    )
    data = load_training_data(settings, tokenizer)
    assert data.kind == "template"
    assert data.labels_present
    assert data.report.training.labels.counts == (("0", 3), ("1", 3), ("2", 3))
    text = tokenizer.decode(data.train[0]["input_ids"])
    assert text.startswith("Premise: p")
    assert "Answer: r So: " in text


def test_takes_instruction_rows_with_null_input(tokenizer, write_rows):
    rows = [{"instruction": "greet", "input": None, "output": f"hi {i}"} for i in range(3)]
    data = load_training_data(settings_for(write_rows(rows)), tokenizer)
    assert data.kind == "instruction"
    assert "### Input" not in tokenizer.decode(data.train[0]["input_ids"])


def test_says_which_chat_template_writes_conversations(tokenizer, write_rows):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [{"messages": turns}, {"messages": [*turns, *turns]}]
    data = load_training_data(settings_for(write_rows(rows), chat_template="chatml"), tokenizer)
    assert "written by chatml" in "\n".join(data.report.lines())


def test_sharegpts_conversations_are_the_same_rows_as_messages(tokenizer, write_rows):
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
             {"role": "assistant", "content": "ho"}]  # fmt: skip
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    theirs = [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]
    loaded = [
        load_training_data(settings_for(write_rows([row] * 3), chat_template="chatml"), tokenizer)
        for row in ({"messages": turns}, {"conversations": theirs, "id": "x"})
    ]
    assert loaded[0].kind == loaded[1].kind == "messages"
    assert loaded[0].train[0] == loaded[1].train[0]


@pytest.mark.row("B36")
def test_b36_warns_of_a_single_row_and_trains_on_it(tokenizer, write_rows):
    data = load_training_data(settings_for(write_rows([{"text": "hello"}])), tokenizer)
    assert data.validation is None
    assert "one usable row" in data.report.warnings[0]


@pytest.mark.row("B40")
def test_b40_blank_rows_are_dropped_counted_and_limited(tokenizer, write_rows, pairs):
    path = write_rows([*pairs, {"prompt": "Q:", "completion": " \n"}])
    data = load_training_data(settings_for(path), tokenizer)
    assert data.report.training.empty == 1
    assert "left out as blank: 1 of 21 rows" in data.report.warnings[0]
    with pytest.raises(DataError, match="1 of 21 rows have nothing to learn"):
        load_training_data(settings_for(path, max_dropped=0.01), tokenizer)


@pytest.mark.row("B43")
def test_b43_says_how_many_rows_were_cut_and_what_would_keep_them(tokenizer, write_rows, pairs):
    path = write_rows([*pairs, {"prompt": "Q:", "completion": "yes " * 100}])
    data = load_training_data(settings_for(path), tokenizer)
    assert data.report.training.counts.truncated == 1
    suggested = data.report.training.suggested_max_length
    assert f"--max-length {suggested} keeps 99 %" in data.report.warnings[0]
    longer = load_training_data(settings_for(path, max_length=suggested), tokenizer)
    assert longer.report.training.counts.truncated == 0


@pytest.mark.row("B45")
def test_b45_warns_of_special_tokens_in_the_text(tokenizer, write_rows, pairs):
    path = write_rows([*pairs, {"prompt": "Q:", "completion": "a <|endoftext|> b"}])
    warnings = load_training_data(settings_for(path), tokenizer).report.warnings
    assert len(warnings) == 1
    assert "special token written out in the text" in warnings[0]
    assert "rows.jsonl:21" in warnings[0]


@pytest.mark.row("B46")
def test_b46_warns_when_validation_rows_are_training_rows(tokenizer, write_rows, pairs):
    path = write_rows(pairs)
    other = write_rows([*pairs[:3], {"prompt": "new:", "completion": "yes"}], "validation.jsonl")
    data = load_training_data(settings_for(path, validation_data=str(other)), tokenizer)
    assert (len(data.train), len(data.validation)) == (20, 4)
    assert "also in the training data: 3 of 4 validation rows" in data.report.warnings[0]


@pytest.mark.row("B46")
def test_b46_warns_of_many_repeated_rows(tokenizer, write_rows, pairs):
    data = load_training_data(settings_for(write_rows(pairs * 2)), tokenizer)
    assert "repeating an earlier row, so trained on more often: 20 of 40" in data.report.warnings[0]
    assert not set(data.train.keys) & set(data.validation.keys)


def test_refuses_validation_rows_of_another_kind(tokenizer, write_rows, pairs):
    other = write_rows([{"text": "hello"}], "validation.jsonl")
    with pytest.raises(DataError, match="kind text, the training rows are prompt-completion"):
        load_training_data(settings_for(write_rows(pairs), validation_data=str(other)), tokenizer)


@pytest.mark.row("B47")
def test_b47_fingerprint_follows_the_content(tokenizer, write_rows, pairs):
    path = write_rows(pairs)
    first = load_source(str(path), settings_for(path), tokenizer).report.sha256
    assert load_source(str(path), settings_for(path), tokenizer).report.sha256 == first
    write_rows([*pairs[:-1], {"prompt": "Question 19:", "completion": "answer 91"}])
    assert load_source(str(path), settings_for(path), tokenizer).report.sha256 != first


@pytest.mark.row("B47")
def test_b47_notices_a_file_that_is_written_meanwhile(tokenizer, write_rows, pairs):
    from lorafit.data.fingerprint import file_state, verify_unchanged
    from lorafit.data.sources import resolve_source

    source = resolve_source(str(write_rows(pairs)))
    before = file_state(source)
    verify_unchanged(source, before)
    write_rows(pairs[:5])
    with pytest.raises(DataError, match="changed while it was read"):
        verify_unchanged(source, before)


def test_asks_for_data_when_none_is_named(tokenizer):
    with pytest.raises(UsageError, match="no training data"):
        load_training_data(Settings(), tokenizer)
