"""The two streams: data goes to stdout for programs, words go to stderr for people.

Nothing else in lorafit prints.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from lorafit.errors import ExitCode, LorafitError
from lorafit.text import escape_control, hide_secrets


class _Stream(Console):
    """A console whose reader may leave; what follows goes nowhere, and the other stream lives."""

    def on_broken_pipe(self) -> None:
        """End the command, as rich does, but leave the other stream alone."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
        raise SystemExit(1)


_out = _Stream(highlight=False, soft_wrap=True)
_err = _Stream(stderr=True, highlight=False)


def silence() -> None:
    """Say nothing more: another process speaks for this one."""
    _out.quiet = _err.quiet = True


def speak() -> None:
    """Speak again after `silence`."""
    _out.quiet = _err.quiet = False


def prepare_streams() -> None:
    """Let characters that the terminal's encoding lacks degrade to `?` instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def stdout_console() -> Console:
    """Return the console for data: tables that a person asked for."""
    return _out


def stderr_console() -> Console:
    """Return the console for words: plans, progress, warnings, errors."""
    return _err


def out(renderable: RenderableType) -> None:
    """Print data to stdout; plain strings are printed as they are, without markup."""
    _out.print(Text(renderable) if isinstance(renderable, str) else renderable)


def write(text: str) -> None:
    """Write a piece of text to stdout at once, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def prompt(text: str) -> None:
    """Ask a person for a line: on stderr, so that answers alone are data."""
    _err.print(Text(text), end="")


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a `--json` command to stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()


def say(renderable: RenderableType = "") -> None:
    """Print words for people to stderr; plain strings are printed as they are, never wrapped.

    A command that is printed has to survive being copied.
    """
    if isinstance(renderable, str):
        _err.print(Text(renderable), soft_wrap=True)
    else:
        _err.print(renderable)


def watched(what: str) -> contextlib.AbstractContextManager[object]:
    """Show whoever watches a terminal that something happens; say nothing to a file."""
    return _err.status(what) if sys.stderr.isatty() else contextlib.nullcontext()


def warn(text: str) -> None:
    """Print a warning to stderr; a terminal's lines end between words."""
    _err.print(_labelled("warning", text, "yellow"), soft_wrap=not _err.is_terminal)


def error(failure: LorafitError) -> None:
    """Print an error and its hint to stderr; the exit code alone tells it if that is gone."""
    with contextlib.suppress(OSError, SystemExit):
        # A run that was asked to stop, and did so with its state saved, is no error.
        is_stop = failure.exit_code == ExitCode.INTERRUPTED_SAVED
        label, style = ("stopped", "bold yellow") if is_stop else ("error", "bold red")
        _err.print(_labelled(label, str(failure), style), soft_wrap=not _err.is_terminal)
        if failure.hint:
            # It is for copying: what a line break would cut stays whole.
            _err.print(_labelled("hint", failure.hint, "cyan"), soft_wrap=True)


def _labelled(label: str, text: str, style: str) -> Text:
    # Lines are kept, everything else that could steer a terminal is escaped.
    lines = [escape_control(line) for line in hide_secrets(text).split("\n")]
    return Text.assemble((f"{label}: ", style), ("\n" + " " * (len(label) + 2)).join(lines))
