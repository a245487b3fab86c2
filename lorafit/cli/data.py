"""`lorafit data inspect`: look at training data before training on it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lorafit.cli import console
from lorafit.cli.data_progress import shown_data_progress
from lorafit.cli.options import Json
from lorafit.config.schema import Settings
from lorafit.errors import ModelError, UsageError
from lorafit.text import escape_control, excerpt

if TYPE_CHECKING:
    from lorafit.data.inspection import Inspection

app = typer.Typer(no_args_is_help=True)

_BAR_CELLS = 40
_MAX_LABELS_SHOWN = 20
_TRAINED_STYLE = "bold green"


@app.callback()
def data() -> None:
    """Look at training data before training on it."""


@app.command("inspect")
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Data file, or a hub data set id.")],
    model: Annotated[
        str | None,
        typer.Option(help="Model whose tokenizer counts; none: microsoft/phi-2 if it is here."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=8, max=1_048_576, help="Tokens kept of a row.")
    ] = 1024,
    show_mask: Annotated[
        int | None,
        typer.Option(
            metavar="ROW",
            help="Show the tokens of a kept row, counted from 1; learnt ones "
            "are coloured, or in brackets without colour.",
        ),
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="Prompt with {field} placeholders.")
    ] = None,
    completion_template: Annotated[
        str | None, typer.Option(help="Completion with {field} placeholders.")
    ] = None,
    chat_template: Annotated[
        str | None, typer.Option(help="For messages: chatml, or a .jinja file.")
    ] = None,
    label_field: Annotated[str | None, typer.Option(help="Field with a row's label.")] = None,
    data_split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train",
    train_on_prompt: Annotated[bool, typer.Option(help="Learn the prompt too.")] = False,
    as_json: Json = False,
) -> None:
    """Show kind, counts, token lengths and label balance of a data file.

    Example: lorafit data inspect my.jsonl
    """
    from lorafit.data.inspection import inspect_data, masked_tokens

    chosen = {
        "model": model,
        "max_length": max_length,
        "prompt_template": prompt_template,
        "completion_template": completion_template,
        "chat_template": chat_template,
        "label_field": label_field,
        "data_split": data_split,
        "train_on_prompt": train_on_prompt,
    }
    settings = _settings(chosen)
    # The file is looked at first: a wrong path should not wait for a tokenizer.
    _verify_source(file, settings)
    tokenizer = _load_tokenizer(settings, is_required=model is not None or show_mask is not None)
    with shown_data_progress() as tell:
        found = inspect_data(file, settings, tokenizer, tell)
    tokens = None
    if show_mask is not None:
        assert found.dataset is not None
        tokens = masked_tokens(found.dataset, show_mask, tokenizer)
    if as_json:
        _print_json(found, tokens)
        return
    _print_inspection(found)
    if show_mask is not None and tokens is not None and found.dataset is not None:
        source = found.dataset.source_of(show_mask - 1)
        console.out(Text.assemble(f"\n{source}, learnt tokens marked:\n", _mask(tokens)))


def _settings(chosen: dict[str, Any]) -> Settings:
    for name, value in chosen.items():
        if value == "":
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is empty", hint=f"give {flag} a value or leave it out")
    return Settings(**{name: value for name, value in chosen.items() if value is not None})


def _verify_source(file: str, settings: Settings) -> None:
    from lorafit.data.sources import resolve_source

    resolve_source(file, settings.data_split)


def _load_tokenizer(settings: Settings, *, is_required: bool) -> Any | None:
    """Return the tokenizer, or None if nobody asked for this one and it is not here."""
    from lorafit.model.tokenizer import load_tokenizer

    try:
        return load_tokenizer(settings)
    except ModelError as error:
        if is_required:
            raise
        console.warn(
            f"no tokenizer, so lengths are in characters and not in tokens ({error}); "
            "name a local model for tokens: --model DIR"
        )
        return None


def _print_json(found: "Inspection", tokens: list[tuple[str, bool]] | None) -> None:
    document = found.as_dict()
    if tokens is not None:
        document["mask"] = [{"token": token, "trained": trained} for token, trained in tokens]
    console.print_json(document)


def _print_inspection(found: "Inspection") -> None:
    for line in found.lines:
        console.out(line)
    console.out(f"\n{found.unit} a row:")
    console.out(_histogram(found))
    if found.suggested_max_length is not None:
        console.out(f"\n--max-length {found.suggested_max_length} keeps 99 % of the rows whole")
    if found.labels is not None:
        share = found.labels.majority_share
        console.out(f"\nlabels (always answering the first is right in {share:.1%}):")
        counts = found.labels.counts
        for label, count in counts[:_MAX_LABELS_SHOWN]:
            console.out(f"  {count:>8}  {excerpt(label, 60)}")
        if len(counts) > _MAX_LABELS_SHOWN:
            console.out(f"  and {len(counts) - _MAX_LABELS_SHOWN} more")
    for warning in found.warnings:
        console.warn(warning)


def _histogram(found: "Inspection") -> Text:
    """Return one line a bin: range, rows and a bar; rows beyond max_length are red."""
    terminal = console.stdout_console()
    block = "█" if terminal.encoding.startswith("utf") else "#"
    ranges = [f"{bin_.low}-{bin_.high - 1}" for bin_ in found.bins]
    fullest = max(bin_.count for bin_ in found.bins)
    range_width, count_width = max(map(len, ranges)), len(str(fullest))
    bar_width = max(1, min(_BAR_CELLS, terminal.width - range_width - count_width - 2))
    lines = []
    for name, bin_ in zip(ranges, found.bins, strict=True):
        # A bin that is not empty always shows, however small its share.
        cells = max(round(bin_.count / fullest * bar_width), 1) if bin_.count else 0
        is_cut = found.unit == "tokens" and bin_.low > found.max_length
        bar = (block * cells, "red" if is_cut else "cyan")
        lines.append(Text.assemble(f"{name:>{range_width}} {bin_.count:>{count_width}} ", bar))
    return Text("\n").join(lines)


def _mask(tokens: list[tuple[str, bool]]) -> Text:
    """Return the tokens as text: learnt ones in colour, or in brackets where there is none."""
    terminal = console.stdout_console()
    has_colour = terminal.color_system is not None and not terminal.no_color
    text = Text()
    for token, is_trained in tokens:
        shown = escape_control(token)
        if has_colour:
            text.append(shown, _TRAINED_STYLE if is_trained else "dim")
        else:
            text.append(f"[{shown}]" if is_trained else shown)
        if token.endswith("\n"):
            text.append("\n")
    return text
