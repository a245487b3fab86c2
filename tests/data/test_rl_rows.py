import pytest
from tiny import build_tokenizer, write_jsonl

from lorafit.config.schema import Settings
from lorafit.data.rl_rows import load_method_data
from lorafit.errors import DataError
from lorafit.model.tokenizer import _UNEMBEDDED


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


def test_a_prompt_with_a_token_that_the_model_does_not_embed_is_named_with_its_line(tmp_path):
    tokenizer = build_tokenizer()
    setattr(tokenizer, _UNEMBEDDED, ("<image>",))
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": "see <image>"}])
    settings = Settings(method="grpo", data=str(data), max_length=64, max_completion_length=16)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: holds <image>, a token"):
        load_method_data(settings, tokenizer)


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


def test_a_pair_is_repeated_where_both_answers_are(load):
    one = {"prompt": "the colour is", "chosen": " red", "rejected": " blue"}
    data = load([one, {**one, "rejected": " green"}, one], "dpo")
    assert len(data.rows) == 3
    assert data.report.train_counts.duplicates == 1
    assert data.report.training.counts.duplicates == 1


TURNS = [
    {"role": "user", "content": "which?"},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "and then?"},
]
AS_SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}
    for turn in TURNS
]
RED, GREEN = ({"role": "assistant", "content": colour} for colour in ("red", "green"))
GPT_RED, GPT_GREEN = ({"from": "gpt", "value": colour} for colour in ("red", "green"))
CHAT = {"chat_template": "chatml", "max_length": 256}


def written(turns):
    """Return turns as ChatML has them."""
    return "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns)


@pytest.mark.parametrize("answer", [[], [GPT_RED]])
def test_sharegpts_turns_are_a_prompt_up_to_the_users_last(load, answer):
    data = load([{"conversations": AS_SHAREGPT + answer, "answer": "red"}], **CHAT)
    (row,) = data.rows
    assert row["prompt"] == written(TURNS) + "<|im_start|>assistant\n"
    assert row["answer"] == "red"
    assert row["conversations"] == AS_SHAREGPT + answer
    assert data.kind == "messages"
    assert data.report.chat_reason == "chatml, the named chat template"


def test_turns_may_stand_in_prompt_and_other_fields_say_nothing_about_the_kind(load):
    (row,) = load([{"prompt": TURNS, "rejected": [GREEN]}], **CHAT).rows
    assert row == {
        "prompt": written(TURNS) + "<|im_start|>assistant\n",
        "rejected": [GREEN],
    }
    (row,) = load([{"prompt": "which?", "rejected": [GREEN]}]).rows
    assert row == {"prompt": "which?", "rejected": [GREEN]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "chosen": RED, "rejected": GREEN},
        {"conversations": AS_SHAREGPT, "chosen": GPT_RED, "rejected": GPT_GREEN},
        {"conversations": AS_SHAREGPT, "chosen": "red", "rejected": "green"},
        {"prompt": TURNS, "chosen": [RED], "rejected": [GREEN]},
        {"chosen": [*TURNS, RED], "rejected": [*TURNS, GREEN]},
        {"chosen": [*AS_SHAREGPT, GPT_RED], "rejected": [*AS_SHAREGPT, GPT_GREEN]},
        {"prompt": "and then?", "chosen": [*TURNS, RED], "rejected": [*TURNS, GREEN]},
        {"messages": TURNS, "chosen": [*TURNS, RED], "rejected": [GREEN]},
    ],
)
def test_only_the_last_answers_of_two_conversations_are_compared(load, row):
    data = load([row], "dpo", **CHAT)
    tokenizer = build_tokenizer()
    (pair,) = data.rows
    assert tokenizer.decode(pair["prompt_ids"]) == written(TURNS) + "<|im_start|>assistant\n"
    assert tokenizer.decode(pair["chosen_ids"]) == "red<|im_end|><|endoftext|>"
    assert tokenizer.decode(pair["rejected_ids"]) == "green<|im_end|><|endoftext|>"
    assert data.kind == "messages"
    assert data.report.chat_reason == "chatml, the named chat template"


def test_a_text_before_two_single_answers_is_what_the_user_said(load):
    data = load([{"prompt": "which?", "chosen": [RED], "rejected": [GREEN]}], "dpo", **CHAT)
    text = build_tokenizer().decode(data.rows[0]["prompt_ids"])
    assert text == written(TURNS[:1]) + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": [*TURNS, RED]}, "the field 'rejected' is missing"),
        ({"chosen": [*TURNS, RED], "rejected": 3}, "'rejected' must be text, a turn or a list"),
        ({"chosen": [*TURNS, RED], "rejected": [*TURNS, RED]}, "nothing to prefer"),
        (
            {"chosen": [*TURNS, RED], "rejected": [TURNS[0], RED, TURNS[2], GREEN]},
            "chosen and rejected differ in message 2, before their last answers",
        ),
        (
            {"prompt": "who?", "chosen": [*TURNS, RED], "rejected": [*TURNS, GREEN]},
            "'chosen' has turns of its own, which do not go on from 'prompt'",
        ),
        ({"chosen": TURNS, "rejected": [*TURNS, RED]}, "the last message is of the user"),
        ({"prompt": TURNS, "chosen": [], "rejected": [RED]}, "not an empty list"),
        ({"messages": TURNS, "chosen": " ", "rejected": "red"}, "'chosen' is blank"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "the first row a conversation"),
    ],
)
def test_conversations_that_cannot_be_compared_are_named_with_their_line(load, row, message):
    good = {"messages": TURNS, "chosen": RED, "rejected": GREEN}
    with pytest.raises(DataError, match=r"rows\.jsonl:2") as caught:
        load([good, row], "dpo", **CHAT)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [GPT_RED]}, "message 1 is of the assistant, and one of the user is due"),
        ({"conversations": "which?"}, "'conversations' must be a list of {from, value}"),
        ({"messages": [{"role": "system", "content": "x"}]}, "must end with the user's"),
        ({"prompt": "which?"}, "this row is text, the first row a conversation"),
    ],
)
def test_a_conversation_that_cannot_be_answered_is_named_with_its_line(load, row, message):
    with pytest.raises(DataError, match=r"rows\.jsonl:2") as caught:
        load([{"conversations": AS_SHAREGPT}, row], **CHAT)
    assert message in str(caught.value)


def test_conversations_to_compare_need_a_chat_template(load):
    with pytest.raises(DataError, match="no chat template"):
        load([{"messages": TURNS, "chosen": RED, "rejected": GREEN}], "dpo")
