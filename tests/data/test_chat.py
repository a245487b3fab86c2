import pytest

from lorafit.config.schema import Settings
from lorafit.data.chat import NAMED_TEMPLATES, load_chat_format
from lorafit.data.dataset import IGNORED_LABEL
from lorafit.data.records import Record
from lorafit.data.templates import RowError
from lorafit.data.tokenize import tokenize_records
from lorafit.data.turns import Message
from lorafit.errors import DataError

END = "<|endoftext|>"
TURNS = (
    Message("system", "be brief"),
    Message("user", "hello"),
    Message("assistant", "yes"),
    Message("user", "there"),
    Message("assistant", "no"),
)


def chat(messages=TURNS) -> Record:
    return Record(None, messages[-1].content, messages, None, "rows.jsonl:7")


def test_learns_the_assistants_turns_with_their_end_marks_only(tokenizer):
    settings = Settings(max_length=256, chat_template="chatml")
    dataset = tokenize_records([chat()], tokenizer, settings)
    learnt = tokenizer.decode([t for t in dataset[0]["labels"] if t != IGNORED_LABEL])
    assert learnt == f"yes<|im_end|>no<|im_end|>{END}"
    assert tokenizer.decode(dataset[0]["input_ids"]).startswith("<|im_start|>system\nbe brief")


def test_generation_reads_the_beginning_of_the_trained_text(tokenizer):
    settings = Settings(max_length=256, chat_template="chatml")
    prompt = load_chat_format(settings, tokenizer).render_prompt(TURNS[:-1])
    ids = tokenizer(prompt)["input_ids"]
    dataset = tokenize_records([chat()], tokenizer, settings)
    assert dataset[0]["input_ids"][: len(ids)] == ids
    assert dataset[0]["labels"][len(ids)] != IGNORED_LABEL


def test_does_not_end_a_conversation_twice_where_the_end_mark_is_the_end_token(
    build_tokenizer, settings
):
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.chat_template = NAMED_TEMPLATES["chatml"]
    dataset = tokenize_records([chat()], tokenizer, Settings(max_length=256))
    labels = dataset[0]["labels"]
    learnt = tokenizer.decode([t for t in labels if t != IGNORED_LABEL])
    assert learnt == "yes<|im_end|>no<|im_end|>"
    assert labels[-1] == tokenizer.eos_token_id
    assert load_chat_format(settings, tokenizer).reason == "the tokenizer's own chat template"


def test_takes_a_template_file(tokenizer, tmp_path):
    path = tmp_path / "short.jinja"
    path.write_text("{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}")
    settings = Settings(max_length=64, chat_template=str(path))
    dataset = tokenize_records([chat()], tokenizer, settings)
    assert (
        tokenizer.decode(dataset[0]["input_ids"]) == f"s:be brief;u:hello;a:yes;u:there;a:no;{END}"
    )
    assert str(path) in load_chat_format(settings, tokenizer).reason


def test_asks_for_a_template_where_the_tokenizer_has_none(tokenizer, settings):
    with pytest.raises(DataError, match="no chat template") as caught:
        tokenize_records([chat()], tokenizer, settings)
    assert "--chat-template chatml" in caught.value.hint


def test_refuses_an_unknown_template_name_and_lists_the_known(tokenizer):
    with pytest.raises(DataError, match="neither a named chat template") as caught:
        load_chat_format(Settings(chat_template="chatlm"), tokenizer)
    assert "chatml" in caught.value.hint


def test_a_template_cannot_reach_python_objects(tokenizer, tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "evil.jinja"
    path.write_text(
        "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        f"{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}"
    )
    settings = Settings(chat_template=str(path))
    with pytest.raises(DataError, match=r"rows.jsonl:7: the chat template fails .*SecurityError"):
        tokenize_records([chat()], tokenizer, settings)
    assert not canary.exists()


def test_refuses_a_template_that_rewrites_earlier_turns(tokenizer, tmp_path):
    path = tmp_path / "last.jinja"
    path.write_text("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    form = load_chat_format(Settings(chat_template=str(path)), tokenizer)
    with pytest.raises(RowError, match="rewrites earlier turns"):
        form.segments(TURNS)
