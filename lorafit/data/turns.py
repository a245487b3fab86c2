"""Turns of a conversation, read strictly: messages as `{role, content}`, or as ShareGPT has them.

ShareGPT's are `{from, value}`, from `human`, `gpt` or `system`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lorafit.data.reading import type_name
from lorafit.data.templates import RowError, check_text
from lorafit.text import excerpt

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_TOOL_ROLES = ("tool", "function", "ipython", "function_call", "observation")
_TOOLS_HINT = (
    "turns of tools are not read: write a call as the assistant's text and its result as the "
    "user's, or render the rows with the model's own template to prompt and completion"
)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def conversation_field(fields: Mapping[str, Any]) -> str | None:
    """Return the field that holds a row's conversation, or None."""
    return next((name for name in ("messages", "conversations") if name in fields), None)


def read_turns(value: Any, name: str) -> tuple[Message, ...]:
    """Return the turns in the field `name`, in whatever order they are.

    Raises:
        RowError: there are none, or one of them is wrong.
    """
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else type_name(value)
        form = "{from, value}" if name == "conversations" else "{role, content}"
        raise RowError(f"{name!r} must be a list of {form}, not {what}")
    return tuple(_message(_as_message(item), number) for number, item in enumerate(value, start=1))


def verify_turns(messages: Sequence[Message]) -> None:
    """Check that user and assistant take turns.

    Raises:
        RowError: the first message that is not one of whose turn it is.
    """
    expected = "user"
    for number, message in enumerate(messages, start=1):
        if message.role == "system" and number == 1:
            continue
        if message.role != expected:
            raise RowError(
                f"message {number} is of the {message.role}, and one of the {expected} is due: "
                "after an optional system message, user and assistant take turns"
            )
        expected = "assistant" if expected == "user" else "user"


def verify_answered(messages: Sequence[Message]) -> None:
    """Check that user and assistant take turns, up to an answer.

    Raises:
        RowError: they do not, or the last message is not the assistant's.
    """
    verify_turns(messages)
    if messages[-1].role != "assistant":
        raise RowError(
            f"the last message is of the {messages[-1].role}: there is no answer to learn"
        )


def _as_message(turn: Any) -> Any:
    """Return a turn of ShareGPT as `{role, content}`; what is none of them stays as it is."""
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or "value" not in turn:
        return turn
    return {"role": _SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        raise RowError(f"message {number} must be an object with role and content")
    role = item["role"]
    if role not in ROLES:
        shown = excerpt(repr(role), 40)
        raise RowError(
            f"message {number} has the role {shown}; roles are {', '.join(ROLES)}",
            _TOOLS_HINT if role in _TOOL_ROLES else None,
        )
    if item.get("tool_calls"):
        raise RowError(f"message {number} calls a tool, and calls are not read", _TOOLS_HINT)
    if not isinstance(item["content"], str):
        raise RowError(f"message {number}: content must be text, not {type_name(item['content'])}")
    return Message(role, check_text(item["content"], f"message {number}"))
