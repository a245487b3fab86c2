"""What to type for rows of a kind that is not known, by the fields that they have."""

import re
from collections.abc import Iterable

KINDS_HINT = (
    "a row holds text, or prompt and completion, or instruction and output, or messages; "
    "for other fields set --prompt-template and --completion-template"
)
_QUESTIONS = ("prompt", "question", "query", "instruction", "input", "context", "source", "user")
_ANSWERS = (
    "completion", "answer", "answers", "response", "output", "target", "reply", "chosen",
    "assistant", "label",
)  # fmt: skip


def kinds_hint(fields: Iterable[object]) -> str:
    """Return the hint for a row with these fields: the very flags where they can be told."""
    names = [str(field) for field in fields]
    usable = {name.lower(): name for name in names if re.fullmatch(r"[A-Za-z_]\w{0,39}", name)}
    question = next((usable[name] for name in _QUESTIONS if name in usable), None)
    answer = next((usable[name] for name in _ANSWERS if name in usable), None)
    if question is None or answer is None:
        return KINDS_HINT
    return (
        f"{KINDS_HINT}, such as "
        f'--prompt-template "{{{question}}}" --completion-template "{{{answer}}}"'
    )
