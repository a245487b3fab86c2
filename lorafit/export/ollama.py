"""An Ollama Modelfile whose template writes prompts as the run's training rows were written."""

from dataclasses import dataclass

from lorafit.data.templates import INSTRUCTION_LAYOUT
from lorafit.hardware.info import Choice
from lorafit.text import excerpt

# Ollama's templates are Go templates over .Messages (conversations) or .Prompt (one text).
_CHATML = (
    "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n"
)
_LLAMA_3 = (
    "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
    "{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_GEMMA = (
    '{{ range .Messages }}<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}user{{ end }}'
    "\n{{ .Content }}<end_of_turn>\n{{ end }}<start_of_turn>model\n"
)
_MISTRAL = (
    '{{ range .Messages }}{{ if eq .Role "assistant" }} {{ .Content }}</s>'
    "{{ else }}[INST] {{ .Content }} [/INST]{{ end }}{{ end }}"
)
# What a Jinja chat template must hold to be one of these, and where its answers end.
_KNOWN = (
    ("<|im_start|>", _CHATML, "<|im_end|>", "ChatML"),
    ("<|start_header_id|>", _LLAMA_3, "<|eot_id|>", "Llama 3's"),
    ("<start_of_turn>", _GEMMA, "<end_of_turn>", "Gemma's"),
    ("[INST]", _MISTRAL, "</s>", "Mistral's"),
)
SAFETENSORS_ARCHITECTURES = frozenset(
    {"llama", "mistral", "gemma", "gemma2", "gemma3", "gemma3_text"}
)
"""Model types that Ollama reads from safetensors; all others need a GGUF file."""


@dataclass(frozen=True)
class PromptFormat:
    """How a run's prompts were written."""

    row_kind: str | None
    """The kind of its rows, such as `messages` or `instruction`."""
    chat_template: str | None
    """The Jinja chat template, where there is one."""
    end_of_text: str
    """The token after which the model was trained to stop."""


def ollama_template(form: PromptFormat) -> Choice[str | None]:
    """Return the Go template, or None where none is known, and why."""
    if form.row_kind == "messages":
        for mark, template, _, name in _KNOWN:
            if form.chat_template and mark in form.chat_template:
                return Choice(template, f"the rows are conversations in {name} format")
        return Choice(
            None, "the rows are conversations in a format without a counterpart here: write "
            "TEMPLATE yourself, or keep the one that Ollama finds in a GGUF file",
        )  # fmt: skip
    if form.row_kind == "instruction":
        layout = INSTRUCTION_LAYOUT.replace("{instruction}", "{{ .Prompt }}")
        return Choice(layout, "the rows are instructions")
    return Choice("{{ .Prompt }}", "the rows are plain prompts, so what is typed is sent as it is")


def modelfile(weights: str, form: PromptFormat) -> tuple[str, str]:
    """Return a Modelfile and the reason of its template.

    Args:
        weights: the GGUF file beside the Modelfile, or `.` for its folder of safetensors.
        form: how the run's prompts were written.
    """
    template, reason = ollama_template(form)
    lines = [f"# TEMPLATE: {reason}", f"FROM {weights}"]
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    stops = [form.end_of_text, *_turn_ends(form)]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys(stops) if stop]
    return "\n".join(lines) + "\n", reason


def _turn_ends(form: PromptFormat) -> list[str]:
    if form.row_kind == "instruction":
        return ["### Instruction:"]
    if form.row_kind != "messages" or not form.chat_template:
        return []
    return [end for mark, _, end, _ in _KNOWN if mark in form.chat_template][:1]


def _quoted(text: str) -> str:
    return '"' + excerpt(text, 80).replace('"', '\\"') + '"'
