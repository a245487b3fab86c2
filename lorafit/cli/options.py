"""Options that several commands have: the same name, range and help in all of them."""

from collections.abc import Mapping
from typing import Annotated

import typer

from lorafit.cli.completion import complete_runs
from lorafit.errors import UsageError

RUN_ARGUMENT = typer.Argument(
    metavar="RUN", help="Output folder of a `lorafit train`.", autocompletion=complete_runs
)
OptionalRun = Annotated[str | None, RUN_ARGUMENT]
AdapterInsteadOfRun = Annotated[
    str | None, typer.Option("--adapter", help="Adapter folder, instead of RUN.", metavar="DIR")
]
AdapterOrBase = Annotated[
    str | None,
    typer.Option(
        "--adapter", help="Adapter folder; without it the base model is used.", metavar="DIR"
    ),
]
Temperature = Annotated[
    float, typer.Option(help="0: always the likeliest token.", min=0.0, max=5.0)
]
TopP = Annotated[float, typer.Option(help="Probability mass sampled from.", min=0.01, max=1.0)]
MaxNewTokens = Annotated[int, typer.Option(help="Tokens to write at most.", min=1, max=32_768)]
Port = Annotated[
    int, typer.Option(help="Port on this machine; 0: any free one.", min=0, max=65_535)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def flags_of(**values: str | bool | None) -> dict[str, str | bool]:
    """Return the settings that were given, as flags of `RunChoices`."""
    return {name: value for name, value in values.items() if value is not None}


def refuse_empty(values: Mapping[str, str | None], hint: str) -> None:
    """Refuse a value that was given and has no text, by its flag or the argument's name.

    Raises:
        UsageError: a value is empty or blank.
    """
    for name, value in values.items():
        if value is not None and not value.strip():
            raise UsageError(f"{name} is empty", hint=hint)
