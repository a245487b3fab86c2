"""A better and a worse answer to the same conversation, in the forms that data sets have them.

`chosen` and `rejected` are each an answer (text, or one turn), or a list of turns that ends with
one. What comes before is in `messages`, `conversations` or `prompt`, or at the beginning of both.
"""

from collections.abc import Mapping
from typing import Any

from lorafit.data.reading import type_name
from lorafit.data.templates import RowError, check_text
from lorafit.data.turns import Message, conversation_field, read_turns, verify_answered

_SIDES = ("chosen", "rejected")


def read_conversations(
    fields: Mapping[str, Any],
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Return the conversation with the better answer, and that with the worse one.

    Raises:
        RowError: one of them is wrong, or they differ before their last answers.
    """
    chosen, rejected = (_whole(fields, name) for name in _SIDES)
    if chosen[:-1] != rejected[:-1]:
        pairs = enumerate(zip(chosen, rejected, strict=False), start=1)
        number = next((n for n, (ours, theirs) in pairs if ours != theirs), len(chosen))
        raise RowError(
            f"chosen and rejected differ in message {number}, before their last answers: both "
            "must answer the same conversation"
        )
    return chosen, rejected


def _whole(fields: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    before, place = _before(fields)
    turns = _side(fields, name)
    if len(turns) > 1 and before:
        if turns[: len(turns) - 1][-len(before) :] == before:
            before = ()
        elif turns[0].role != "assistant":
            raise RowError(f"{name!r} has turns of its own, which do not go on from {place!r}")
    messages = (*before, *turns)
    verify_answered(messages)
    if not messages[-1].content.strip():
        raise RowError(f"{name!r} is blank")
    return messages


def _before(fields: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    """Return the turns that stand before both answers, and the field that holds them."""
    name = conversation_field(fields) or "prompt"
    value = fields.get(name)
    if value is None:
        return (), name
    if name == "prompt" and isinstance(value, str):
        return (Message("user", check_text(value, name)),), name
    return read_turns(value, name), name


def _side(fields: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    if name not in fields:
        raise RowError(f"the field {name!r} is missing")
    value = fields[name]
    if isinstance(value, str):
        return (Message("assistant", check_text(value, name)),)
    if not isinstance(value, (list, dict)):
        raise RowError(f"{name!r} must be text, a turn or a list of turns, not {type_name(value)}")
    return read_turns([value] if isinstance(value, dict) else value, name)
