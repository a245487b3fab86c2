"""`lorafit chat` over a pipe, and how a conversation becomes a prompt."""

import io
import sys

import pytest

from lorafit.data.chat import NAMED_TEMPLATES, ChatFormat
from lorafit.evaluation.conversation import Conversation


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def run(kept, run_lorafit, train_arguments, tmp_path_factory):
    """A run whose adapter changes what the model writes."""
    if "run" not in kept:
        folder = tmp_path_factory.mktemp("kept") / "run"
        outcome = run_lorafit(*train_arguments(folder, max_steps=8, learning_rate=5e-2))
        assert outcome.code == 0, outcome.err
        kept["run"] = folder
    return kept["run"]


@pytest.fixture
def chat(run_lorafit, monkeypatch):
    """Return a function that pipes lines into a chat."""

    def talk(*lines, arguments):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        common = ("--device", "cpu", "--max-new-tokens", "6")
        outcome = run_lorafit("chat", *arguments, *common)
        assert outcome.code == 0, outcome.err
        return outcome

    return talk


def test_answers_go_to_stdout_and_words_to_stderr(chat, run, run_lorafit):
    outcome = chat("the colour of thing 1 is", "", "/quit", "never read", arguments=[run])
    written = run_lorafit(
        *("generate", "--adapter", run / "adapter", "--device", "cpu", "--max-new-tokens", "6"),
        *("--prompt", "the colour of thing 1 is"),
    )
    assert outcome.out.rstrip("\n") == written.out.strip(" ").rstrip("\n")
    assert "the model was trained on single prompts: each line stands alone" in outcome.err
    assert "> " not in outcome.err


def test_the_adapter_is_switched_off_and_on(chat, run, run_lorafit, tiny_model):
    said = "the colour of thing 1 is"
    outcome = chat(said, "/adapter off", said, "/adapter on", said, arguments=[run])
    alone = chat(said, arguments=["--model", tiny_model()])
    base = alone.out
    tuned = chat(said, arguments=[run]).out
    assert base != tuned
    assert outcome.out == tuned + base + tuned
    assert "the adapter is off: the base model answers" in outcome.err


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/adpter off", "/adpter off is not known here; /adapter is:"),
        ("/adapter maybe", "/adapter maybe is not known here"),
        ("/reset", "the conversation begins anew"),
        ("/help", "/reset           forget the conversation"),
        ("/\x1b[31m", "/\\x1b[31m is not known here"),
    ],
)
def test_a_line_that_begins_with_a_slash_is_a_command(chat, run, line, answer):
    outcome = chat(line, arguments=[run])
    assert answer in outcome.err
    assert outcome.out == ""


def test_a_model_alone_has_no_adapter_to_switch(chat, tiny_model):
    outcome = chat("/adapter off", arguments=["--model", tiny_model()])
    assert "there is no adapter here" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to talk to"),
        ([""], "RUN is empty"),
        (["x", "--adapter", "y"], "RUN and --adapter are both given"),
        (["--model", ""], "--model is empty"),
    ],
)
def test_nothing_to_talk_to_is_a_usage_error(run_lorafit, arguments, message):
    outcome = run_lorafit("chat", *arguments)
    assert outcome.code == 2
    assert message in outcome.err


def test_a_chat_template_shows_the_model_every_turn(chat, run):
    outcome = chat("hello", "again", arguments=[run, "--chat-template", "chatml"])
    assert "turns are written by chatml, the named chat template" in outcome.err
    assert len(outcome.out.split("\n")) >= 3


@pytest.fixture
def chatml(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    return ChatFormat(tokenizer, NAMED_TEMPLATES["chatml"], "a test")


def test_turns_pile_up_until_reset(chatml):
    conversation = Conversation(chatml, "messages")
    conversation.add("hi", " hello ")
    assert conversation.prompt("more") == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )
    conversation.reset()
    assert "hello" not in conversation.prompt("more")


def test_instructions_pile_up_in_their_layout():
    conversation = Conversation(None, "instruction")
    conversation.add("Add 1 and 1.", "2")
    assert conversation.form.value
    assert conversation.prompt("And 1?") == (
        "### Instruction:\nAdd 1 and 1.\n\n### Response:\n2\n\n"
        "### Instruction:\nAnd 1?\n\n### Response:"
    )


def test_single_prompts_do_not_pile_up():
    conversation = Conversation(None, "prompt-completion")
    conversation.add("one", "two")
    assert not conversation.form.value
    assert conversation.prompt("three ") == "three"


def test_pieces_of_a_character_are_handed_on_whole(tiny_model):
    import torch
    from transformers import AutoTokenizer

    from lorafit.evaluation.conversation import _Stream

    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    tokens = tokenizer("né 🌍 red")["input_ids"]
    pieces = []
    stream = _Stream(tokenizer, pieces.append, num_prompt=1)
    stream.put(torch.tensor([[5]]))
    for token in tokens:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == stream.text == "né 🌍 red"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert len(pieces) > 3


def test_ctrl_c_ends_the_answer_and_not_the_chat(chat, run, monkeypatch):
    from lorafit.evaluation import conversation

    put, calls = conversation._Stream.put, []

    def interrupted(self, value):
        put(self, value)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(conversation._Stream, "put", interrupted)
    outcome = chat("the colour", "/reset", arguments=[run])
    assert "the conversation begins anew" in outcome.err
    assert len(calls) == 3
