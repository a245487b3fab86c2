import pytest
from tiny import build_tokenizer, write_jsonl

from lorafit.config.schema import Settings
from lorafit.data.rl_rows import load_method_data
from lorafit.errors import DataError


@pytest.fixture
def load(tmp_path):
    """Return a function that loads rows for a method."""

    def load_rows(rows, method="grpo", **settings):
        data = write_jsonl(tmp_path / "rows.jsonl", rows)
        options = {"max_length": 64, "max_completion_length": 16, **settings}
        return load_method_data(
            Settings(method=method, data=str(data), **options), build_tokenizer()
        )

    return load_rows


def test_a_prompt_keeps_the_fields_of_its_row_and_learns_nothing_of_itself(load):
    data = load([{"prompt": "the colour is", "answer": "red", "number": 3}])
    assert data.rows == ({"prompt": "the colour is", "answer": "red", "number": 3},)
    assert data.report.train_counts.supervised_tokens == 0
    assert data.validation is None
    (prompt,) = (len(build_tokenizer()("the colour is")["input_ids"]),)
    assert data.lengths == (prompt + 16,)


def test_a_conversation_is_written_by_the_chat_template_up_to_the_answer(load):
    turns = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": "red"}]
    data = load([{"messages": turns}], chat_template="chatml", max_length=128)
    assert data.rows[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert "red" not in data.rows[0]["prompt"]
    assert data.rows[0]["messages"] == turns


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "the field 'prompt' is missing"),
        ({"prompt": " "}, "'prompt' is blank"),
        ({"prompt": "a", "completions": 1}, "a name that grpo uses itself"),
        ({"prompt": "a b c d " * 30}, "max_completion_length 16 leaves 48"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_named_with_its_line(load, row, message):
    with pytest.raises(DataError, match=r"rows\.jsonl:2") as caught:
        load([{"prompt": "good"}, row])
    assert message in str(caught.value)


def test_a_pair_is_cut_where_the_answers_begin_and_ends_with_end_of_text(load):
    rows = [{"prompt": "the colour is", "chosen": " red", "rejected": " blue"}]
    data = load(rows, "dpo")
    tokenizer = build_tokenizer()
    (pair,) = data.rows
    assert tokenizer.decode(pair["prompt_ids"]) == "the colour is"
    assert tokenizer.decode(pair["chosen_ids"]) == " red<|endoftext|>"
    assert tokenizer.decode(pair["rejected_ids"]) == " blue<|endoftext|>"


def test_a_pair_without_room_for_an_answer_is_dropped_and_counted(load):
    long = {"prompt": "x y z " * 40, "chosen": " red", "rejected": " blue"}
    good = {"prompt": "the colour is", "chosen": " red", "rejected": " blue"}
    data = load([good, long], "dpo", max_dropped=0.5)
    assert len(data.rows) == len(data.train) == 1
    assert data.report.training.counts.dropped == 1
    with pytest.raises(DataError, match="1 of 2 rows have nothing to learn"):
        load([good, long], "dpo")
