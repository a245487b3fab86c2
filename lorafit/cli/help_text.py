"""Docstrings of commands as help: paragraphs flow to the terminal's width, examples keep lines."""

import inspect
from collections.abc import Callable


def help_of(command: Callable[..., object]) -> str:
    """Return a command's docstring with the line ends inside its paragraphs taken out.

    A paragraph with an indented line is a list or an example, and stays as it is.
    """
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(map(_flow, paragraphs))


def _flow(paragraph: str) -> str:
    lines = paragraph.split("\n")
    if any(line.startswith(" ") for line in lines):
        return paragraph
    return " ".join(lines)
