"""`lorafit generate`: a prompt or a file of prompts in, text out."""

import json
import stat
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli import console
from lorafit.cli.inference import resolve_inference
from lorafit.cli.options import AdapterOrBase, Json, MaxNewTokens, Temperature, TopP
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.errors import InputError, UsageError
from lorafit.text import excerpt, is_unicode, visible_text
from lorafit.units import MIB, format_bytes

SCHEMA_VERSION = 1
_MAX_PROMPT_BYTES = 16 * MIB


@with_settings
def command(
    choices: RunChoices,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text to continue; may be given more than once.", metavar="TEXT"),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            help="File with one prompt a line, or JSONL with a `prompt` a row; - reads stdin.",
            metavar="FILE",
        ),
    ] = None,
    adapter: AdapterOrBase = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    as_json: Json = False,
) -> None:
    """Continue prompts with a base model or an adapter.

    Model and templates come from the run that made the adapter: a run on chat messages is
    prompted through its chat template, a run with templates by the text that they make.

    Example: lorafit generate --adapter outputs/run/adapter --prompt "Why is the sky blue?"
    """
    prompts = _collect_prompts(prompt or [], prompt_file)
    resolved, device, folder = resolve_inference(choices, adapter)
    from lorafit.data.templates import render_prompt
    from lorafit.evaluation.generation import Sampling, generate_texts
    from lorafit.evaluation.loading import load_for_inference

    loaded = load_for_inference(resolved.settings, device, folder)
    import torch

    torch.manual_seed(resolved.settings.seed)
    texts = generate_texts(
        loaded.model,
        loaded.tokenizer,
        [render_prompt(text) for text in prompts],
        Sampling(max_new_tokens, temperature, top_p),
        pad_token_id=loaded.pad.token_id,
    )
    if as_json:
        rows = [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)]
        console.print_json({"schema_version": SCHEMA_VERSION, "results": rows})
        return
    for text in texts:
        console.out(_shown(text))


def _shown(text: str) -> str:
    """Return a text as it is for programs; for a terminal, without what would steer it."""
    return visible_text(text) if sys.stdout.isatty() else text


def _collect_prompts(texts: list[str], file: str | None) -> list[str]:
    """Return the prompts of the command line and of the file, all of them text."""
    if file is not None and not file.strip():
        raise UsageError("--prompt-file is empty", hint="--prompt-file FILE, or - for stdin")
    prompts = [*texts, *(_read_prompts(file) if file else [])]
    if not any(text.strip() for text in prompts):
        raise UsageError("no prompt was given", hint='add --prompt "..." or --prompt-file FILE')
    return prompts


def _read_prompts(name: str) -> list[str]:
    text = _read_text(name)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not name.endswith((".jsonl", ".json")):
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            value = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            value = None
        if not isinstance(value, str) or not is_unicode(value):
            raise InputError("has no `prompt` text", where=f"{name}:{number}")
        prompts.append(value)
    return prompts


def _read_text(name: str) -> str:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
        elif not stat.S_ISREG(Path(name).stat().st_mode):
            raise InputError(
                "is not a regular file", where=name, hint="give a file of prompts, or - for stdin"
            )
        else:
            with Path(name).open("rb") as stream:
                data = stream.read(_MAX_PROMPT_BYTES + 1)
    except (OSError, ValueError) as problem:  # a name with a NUL is a ValueError
        reason = getattr(problem, "strerror", None) or str(problem)
        raise InputError(f"cannot be read: {excerpt(reason)}", where=name) from None
    if len(data) > _MAX_PROMPT_BYTES:
        raise InputError(f"holds more than {format_bytes(_MAX_PROMPT_BYTES)}", where=name)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        byte = data[problem.start]
        raise InputError(
            f"not UTF-8: byte 0x{byte:02x} at offset {problem.start}", where=f"{name}:{line}"
        ) from None
