import pytest

from lorafit.config.schema import Settings
from lorafit.data.templates import (
    RowError,
    load_templates,
    parse_template,
    render_completion,
    render_instruction,
    render_prompt,
)
from lorafit.errors import ConfigError


@pytest.mark.parametrize(
    ("prompt", "completion", "read", "written"),
    [
        ("Answer:", "yes", "Answer:", " yes"),
        ("Answer: ", "yes", "Answer:", " yes"),
        ("Answer: ", " yes", "Answer:", " yes"),
        ("Answer:", "\nyes", "Answer:", "\nyes"),
        ("Answer:\n", "yes", "Answer:", "\nyes"),
        ("Answer:\n\n", " yes ", "Answer:", "\n\n yes "),
    ],
)
def test_white_space_between_prompt_and_completion_belongs_to_the_completion(
    prompt, completion, read, written
):
    assert render_prompt(prompt) == read
    assert render_completion(prompt, completion) == written


def test_instruction_leaves_out_an_empty_input_and_keeps_braces():
    assert render_instruction("Name {input}.", "") == (
        "### Instruction:\nName {input}.\n\n### Response:\n"
    )
    assert render_instruction("Add {input}", "1 {instruction}") == (
        "### Instruction:\nAdd {input}\n\n### Input:\n1 {instruction}\n\n### Response:\n"
    )


def test_template_fills_fields_and_writes_numbers():
    template = parse_template("{{P}} {premise} -> {label}", "prompt_template")
    assert template.fields == {"premise", "label"}
    assert template.render({"premise": "a {b}", "label": 2}) == "{P} a {b} -> 2"


@pytest.mark.parametrize(
    "text", ["{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{a", "a}", "{0.__class__}"]
)
def test_refuses_a_template_that_is_more_than_fields(text):
    with pytest.raises(ConfigError, match="prompt_template"):
        parse_template(text, "prompt_template")


def test_names_a_missing_field_and_the_nearest_one():
    template = parse_template("{premis}", "prompt_template")
    with pytest.raises(RowError, match=r"'premis' is not in this row.*did you mean \{premise\}"):
        template.render({"premise": "x"})


def test_refuses_null_in_a_template_field():
    with pytest.raises(RowError, match="'a' is null"):
        parse_template("{a}", "prompt_template").render({"a": None})


def test_needs_both_templates_and_a_field_in_the_completion():
    with pytest.raises(ConfigError, match="completion_template: is not set"):
        load_templates(Settings(prompt_template="{a}"))
    with pytest.raises(ConfigError, match="every answer would be equal"):
        load_templates(Settings(prompt_template="{a}", completion_template="b"))
    assert load_templates(Settings()) is None
