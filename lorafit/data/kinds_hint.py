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
_NUMBERS = frozenset({"id", "idx", "index", "uuid"})


def _named(fields: list[str], usual: tuple[str, ...]) -> str | None:
    """Return the field that is called, or else whose name has a word, as one of `usual`."""
    by_name = {field.lower(): field for field in reversed(fields)}
    whole = (by_name[name] for name in usual if name in by_name)
    words = (f for f in fields if not set(re.findall("[a-z]+", f.lower())).isdisjoint(usual))
    return next(whole, None) or next(words, None)


def kinds_hint(fields: Iterable[object]) -> str:
    """Return the hint for a row with these fields: the very flags where they can be told."""
    # What a shell or a template reads as something else cannot be typed as it stands.
    typeable = [name for name in map(str, fields) if re.fullmatch(r"\w[\w (),/-]{0,39}", name)]
    usable = [name for name in typeable if name.lower() not in _NUMBERS]
    question, answer = _named(usable, _QUESTIONS), _named(usable, _ANSWERS)
    if question == answer:
        question = None
    question = question or next((field for field in usable if field != answer), None)
    answer = answer or next((field for field in usable if field != question), None)
    if question is None or answer is None:
        return KINDS_HINT
    return (
        f"{KINDS_HINT}, such as "
        f'--prompt-template "{{{question}}}" --completion-template "{{{answer}}}"'
    )
