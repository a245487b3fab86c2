"""`lorafit generate`: a prompt or a file of prompts in, text out."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli import console
from lorafit.cli.inference import resolve_inference
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.errors import InputError, UsageError
from lorafit.text import excerpt

SCHEMA_VERSION = 1


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
    adapter: Annotated[
        str | None,
        typer.Option(help="Adapter folder; without it the base model writes.", metavar="DIR"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens a text may take.", min=1, max=32_768)
    ] = 128,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest token.", min=0.0, max=5.0)
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Probability mass sampled from.", min=0.01, max=1.0)
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Continue prompts with a base model or an adapter.

    Model and templates come from the run that made the adapter: a run on chat messages is
    prompted through its chat template, a run with templates by the text that they make.

    Example: lorafit generate --adapter outputs/run/adapter --prompt "Why is the sky blue?"
    """
    prompts = [*(prompt or []), *(_read_prompts(prompt_file) if prompt_file else [])]
    if not any(text.strip() for text in prompts):
        raise UsageError("no prompt was given", hint='add --prompt "..." or --prompt-file FILE')
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
        console.out(text)


def _read_prompts(name: str) -> list[str]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"cannot be read: {excerpt(str(problem))}", where=name) from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not name.endswith((".jsonl", ".json")):
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            value = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            value = None
        if not isinstance(value, str):
            raise InputError("has no `prompt` text", where=f"{name}:{number}")
        prompts.append(value)
    return prompts
