import pytest

from lorafit.export.ollama import PromptFormat, modelfile, ollama_template


@pytest.mark.parametrize(
    ("chat_template", "name", "stop"),
    [
        ("{{ '<|im_start|>' }}", "ChatML", "<|im_end|>"),
        ("{{ '<|start_header_id|>' }}", "Llama 3's", "<|eot_id|>"),
        ("{{ '<start_of_turn>' }}", "Gemma's", "<end_of_turn>"),
        ("{{ '[INST]' }}", "Mistral's", "</s>"),
    ],
)
def test_a_known_chat_format_has_a_template_and_a_stop(chat_template, name, stop):
    text, reason = modelfile(".", PromptFormat("messages", chat_template, "</s>"))
    assert name in reason
    assert "{{ range .Messages }}" in text
    assert f'PARAMETER stop "{stop}"' in text
    assert text.count('</s>"') == 1


def test_an_unknown_chat_format_has_no_template_and_says_so():
    choice = ollama_template(PromptFormat("messages", "{{ messages }}", "</s>"))
    assert choice.value is None
    assert "write TEMPLATE yourself" in choice.reason
    text, _ = modelfile("x.gguf", PromptFormat("messages", "{{ messages }}", "</s>"))
    assert 'TEMPLATE """' not in text


def test_instructions_are_asked_in_their_layout():
    text, _ = modelfile("./m.gguf", PromptFormat("instruction", None, "<|endoftext|>"))
    assert "FROM ./m.gguf\n" in text
    assert "### Instruction:\n{{ .Prompt }}\n\n### Response:\n" in text
    assert 'PARAMETER stop "### Instruction:"' in text


@pytest.mark.parametrize("kind", ["prompt-completion", "text", "template", None])
def test_plain_prompts_are_sent_as_they_are(kind):
    assert ollama_template(PromptFormat(kind, None, "</s>")).value == "{{ .Prompt }}"


def test_a_quote_in_a_stop_is_escaped():
    text, _ = modelfile(".", PromptFormat(None, None, 'a"b'))
    assert 'PARAMETER stop "a\\"b"' in text
