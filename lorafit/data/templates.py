"""How rows become text: templates with {field} placeholders, and where prompt and answer meet.

**Where the prompt ends.** White space between prompt and completion belongs to the completion:
the prompt loses what it has at its end, and the completion begins with it, or with one space if
there is none. BPE tokenizers such as Phi-2's make one token of a space and the word after it, so
a prompt that ended in a space would force a split that the model has never seen. Training and
generation both take the prompt from `render_prompt`; a generated answer is stripped.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, Problem
from lorafit.text import excerpt, nearest


class RowError(Exception):
    """One row cannot become a record; the text says why, `hint` what to do where that is known."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def render_prompt(prompt: str) -> str:
    """Return the prompt as the model reads it, in training and in generation alike."""
    return prompt.rstrip()


def render_completion(prompt: str, completion: str) -> str:
    """Return the completion as the model writes it after `render_prompt(prompt)`.

    It begins with the white space that stood between the two; spaces alone, or none, become one.
    """
    body = completion.lstrip()
    between = prompt[len(prompt.rstrip()) :] + completion[: len(completion) - len(body)]
    return (between if between.strip(" ") else " ") + body


INSTRUCTION_LAYOUT = "### Instruction:\n{instruction}\n\n### Response:\n"
INSTRUCTION_INPUT_LAYOUT = (
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def render_instruction(instruction: str, input_text: str) -> str:
    """Return the prompt of an instruction row; the input section is left out when empty."""
    instruction, input_text = instruction.strip(), input_text.strip()
    # str.replace, not str.format: braces in the data are data.
    if not input_text:
        return INSTRUCTION_LAYOUT.replace("{instruction}", instruction)
    before, after = INSTRUCTION_INPUT_LAYOUT.split("{input}")
    return before.replace("{instruction}", instruction) + input_text + after


@dataclass(frozen=True)
class Template:
    """Text with {field} placeholders: literal texts, each followed by a field (or by None)."""

    setting: str
    pieces: tuple[tuple[str, str | None], ...]

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that a row must have."""
        return frozenset(field for _, field in self.pieces if field is not None)

    def render(self, fields: Mapping[str, Any]) -> str:
        """Return the template filled with a row's fields; numbers are written as text.

        Raises:
            RowError: a field is missing, or is neither text nor a number.
        """
        parts = []
        for literal, field in self.pieces:
            parts.append(literal)
            if field is not None:
                parts.append(_field_text(field, fields))
        return "".join(parts)


def _field_text(name: str, fields: Mapping[str, Any]) -> str:
    if name not in fields:
        similar = nearest(name, fields)
        meant = f"; did you mean {{{excerpt(similar, 40)}}}?" if similar else ""
        shown = excerpt(", ".join(fields), 60)
        raise RowError(f"the template's field {name!r} is not in this row ({shown}){meant}")
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        shown = "null" if value is None else excerpt(repr(value), 40)
        raise RowError(f"the template's field {name!r} is {shown}, not text or a number")
    return check_text(value, name) if isinstance(value, str) else str(value)


def check_text(value: str, field: str) -> str:
    """Return `value` if every tokenizer can read it.

    Raises:
        RowError: it holds a NUL character or half of a surrogate pair.
    """
    if "\x00" in value:
        raise RowError(f"{field!r} holds a NUL character: {excerpt(value, 60)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise RowError(
            f"{field!r} holds half of a surrogate pair (\\u{code:04x}), which is not a character"
        ) from None
    return value


def parse_template(text: str, setting: str) -> Template:
    """Return a parsed template; `{{` and `}}` stand for braces.

    Raises:
        ConfigError: braces do not match, or a placeholder is more than a field name.
    """
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise _template_error(setting, f"{error} in {excerpt(text)}") from None
    for _, field, specification, conversion in parsed:
        # Attribute and index access would let a template look inside Python objects.
        plain = field is None or (field.strip() and not set(field) & set(".[]!:{}"))
        if not plain or specification or conversion:
            shown = excerpt(field or "", 40)
            raise _template_error(setting, f"{{{shown}}} is not the plain name of a field")
    return Template(setting, tuple((literal, field) for literal, field, _, _ in parsed))


def _template_error(setting: str, message: str) -> ConfigError:
    return ConfigError(
        [Problem(setting, message, "write {field} for a field and {{ or }} for a brace")]
    )


@dataclass(frozen=True)
class RowTemplates:
    """The two templates that turn a row's fields into prompt and completion."""

    prompt: Template
    completion: Template


def load_templates(settings: Settings) -> RowTemplates | None:
    """Return the templates of the settings, or None if rows are used as they are.

    Raises:
        ConfigError: only one of the two is set, or one is malformed.
    """
    texts = (settings.prompt_template, settings.completion_template)
    if texts == (None, None):
        return None
    if texts[0] is None or texts[1] is None:
        missing = "prompt_template" if texts[0] is None else "completion_template"
        raise ConfigError(
            [Problem(missing, "is not set, and both templates are needed", f"set {missing}")]
        )
    completion = parse_template(texts[1], "completion_template")
    if not completion.fields:
        raise _template_error("completion_template", "has no {field}: every answer would be equal")
    return RowTemplates(parse_template(texts[0], "prompt_template"), completion)
