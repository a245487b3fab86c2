"""Conversations as text: the chat template, and which parts of it are the assistant's own.

Templates are Jinja programs that come with models and data. transformers renders them in an
immutable sandbox: they can neither reach Python objects nor change what they are given.
"""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lorafit.config.schema import Settings
from lorafit.data.sources import readable
from lorafit.data.templates import RowError
from lorafit.data.turns import Message
from lorafit.errors import DataError
from lorafit.text import escape_control, excerpt
from lorafit.units import MIB

NAMED_TEMPLATES = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}
"""Templates that can be named instead of a file; ChatML works with any tokenizer."""

_SUFFIXES = (".jinja", ".jinja2", ".j2")


class Segment(NamedTuple):
    """A piece of a row's text, and whether the model learns to write it."""

    text: str
    is_trained: bool


@dataclass(frozen=True)
class ChatFormat:
    """A chat template together with the tokenizer that renders it."""

    tokenizer: Any
    template: str
    reason: str
    """Where the template comes from, as a sentence."""
    learns_last_only: bool = False
    """Whether only the last answer is learnt: the one that is compared with another."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Return the conversation as text, perhaps with the header of the next answer.

        Raises:
            RowError: the template refuses the conversation or fails.
        """
        conversation = [message._asdict() for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                conversation,
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except Exception as error:  # Jinja's errors, and whatever a template's own code raises
            what = excerpt(f"{type(error).__name__}: {error}", 160)
            raise RowError(f"the chat template fails on this conversation: {what}") from None
        return str(text)

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """Return what the model reads before it answers the last message."""
        return self.render(messages, add_generation_prompt=True)

    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Return the rendered conversation, cut where the assistant's turns begin and end.

        A turn is what the template adds to the conversation before it, its header left out and
        its end mark included: that works for every template that only appends, also for those
        without generation marks. White space after an end mark is not trained.

        Raises:
            RowError: the template fails, or rewrites earlier turns.
        """
        full = self.render(messages, add_generation_prompt=False)
        answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
        segments, done = [], 0
        for index in answers[-1:] if self.learns_last_only else answers:
            start = self._turn_start(messages[:index], full)
            end = self._turn_end(messages[: index + 1], full, is_last=index == len(messages) - 1)
            if not done <= start < end:
                raise RowError(f"the chat template renders message {index + 1} as nothing")
            segments += [Segment(full[done:start], False), Segment(full[start:end], True)]
            done = end
        return segments

    def _turn_start(self, before: Sequence[Message], full: str) -> int:
        for add_generation_prompt in (True, False):
            prefix = self.render(before, add_generation_prompt=add_generation_prompt)
            if full.startswith(prefix):
                return len(prefix)
        raise RowError(
            "the chat template rewrites earlier turns, so it cannot be told which tokens are the "
            "assistant's: keep the last answer only, or give a template that appends"
        )

    def _turn_end(self, turns: Sequence[Message], full: str, *, is_last: bool) -> int:
        text = full if is_last else self.render(turns, add_generation_prompt=False)
        if not full.startswith(text):
            raise RowError(
                "the chat template renders earlier answers differently, so they cannot be trained: "
                "keep the last answer only, or give a template that appends"
            )
        return len(text.rstrip())


def load_chat_format(settings: Settings, tokenizer: Any) -> ChatFormat:
    """Return the chat format for `messages` rows: the named one, the file, or the tokenizer's.

    Raises:
        DataError: the file cannot be read, or the tokenizer has no template and none is given.
    """
    last_only = settings.method == "dpo"
    choice = settings.chat_template
    if choice in NAMED_TEMPLATES:
        reason = f"{choice}, the named chat template"
        return ChatFormat(tokenizer, NAMED_TEMPLATES[choice], reason, last_only)
    if choice is not None:
        reason = f"the chat template in {choice}"
        return ChatFormat(tokenizer, _read_template(choice), reason, last_only)
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default")
    if not own:
        raise DataError(
            f"the rows are conversations, and the tokenizer of {settings.model} has no chat "
            "template to write them with",
            where="chat_template",
            hint="name one: --chat-template chatml, or --chat-template FILE.jinja",
        )
    return ChatFormat(tokenizer, str(own), "the tokenizer's own chat template", last_only)


def _read_template(choice: str) -> str:
    name = escape_control(choice)
    path = Path(choice).expanduser()
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{name!r} is neither a named chat template nor a .jinja file",
            where="chat_template",
            hint=f"named templates: {', '.join(NAMED_TEMPLATES)}",
        )
    with readable(name):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MIB:
            raise DataError("not a regular file of at most 1 MiB", where=name)
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at byte {error.start}", where=name) from None
