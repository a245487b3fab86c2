"""`lorafit presets`: what is shipped, what is in it, and how two presets differ."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.completion import complete_hardware, complete_presets
from lorafit.cli.options import Json, flags_of, refuse_empty

if TYPE_CHECKING:
    from lorafit.config.presets import Preset

app = typer.Typer(no_args_is_help=True)

_Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Preset, as in `presets list`.", autocompletion=complete_presets
    ),
]


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the shipped presets and the devices that each has a row for.

    Example: lorafit presets list
    """
    from lorafit.cli.tables import plain_table
    from lorafit.config.presets import DEFAULT_ROW, list_presets
    from lorafit.config.schema import SCHEMA_VERSION

    presets = list_presets()
    if as_json:
        entries = [
            {"name": p.name, "description": p.description, "hardware": list(p.rows)}
            for p in presets
        ]
        console.print_json({"schema_version": SCHEMA_VERSION, "presets": entries})
        return
    rows = [
        (p.name, p.description, ", ".join(k for k in p.rows if k != DEFAULT_ROW) or "any device")
        for p in presets
    ]
    console.out(plain_table(None, ("preset", "for", "rows"), rows))
    console.say("Other devices use a preset's default row. Next: lorafit presets show balanced")


@app.command()
def show(name: _Name, as_json: Json = False) -> None:
    """Show a preset: its settings and its rows by device.

    Example: lorafit presets show balanced
    """
    from lorafit.cli.tables import plain_table
    from lorafit.config.presets import load_preset
    from lorafit.config.schema import SCHEMA_VERSION

    preset = load_preset(name)
    if as_json:
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "name": preset.name,
                "description": preset.description,
                "settings": _full_settings(preset),
                "hardware": preset.hardware,
            }
        )
        return
    console.out(f"{preset.name}: {preset.description}")
    console.out(plain_table("on every device", ("setting", "value"), preset.settings.items()))
    columns = list(dict.fromkeys(s for row in preset.hardware.values() for s in row))
    rows = [
        (key, *(row.get(column, "") for column in columns)) for key, row in preset.hardware.items()
    ]
    console.out(plain_table("by device", ("row", *columns), rows))
    console.say(f"The reason for each value: {preset.path}")
    console.say("Settings that are not listed have their defaults: lorafit config show")


@app.command()
def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="One preset.", autocompletion=complete_presets)
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Another preset.", autocompletion=complete_presets)
    ],
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Compare on one device, such as a10g, or auto.",
            autocompletion=complete_hardware,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what two presets set differently: in all rows, or on one device.

    Example: lorafit presets diff low high --hardware a10g
    """
    from lorafit.cli.tables import plain_table
    from lorafit.config.presets import load_preset
    from lorafit.config.schema import SCHEMA_VERSION

    flatten = _by_row if hardware is None else _on_device
    sides = [flatten(load_preset(name), hardware) for name in (first, second)]
    names = list(dict.fromkeys((*sides[0], *sides[1])))
    different = {
        name: (sides[0].get(name), sides[1].get(name))
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    }
    if as_json:
        entries = {name: {"a": a, "b": b} for name, (a, b) in different.items()}
        document = {"schema_version": SCHEMA_VERSION, "a": first, "b": second}
        console.print_json(document | {"hardware": hardware, "differences": entries})
    elif different:
        rows = [
            (name, *("-" if v is None else v for v in pair)) for name, pair in different.items()
        ]
        console.out(plain_table(None, ("setting", first, second), rows))
    else:
        console.out(f"{first} and {second} set the same values")


@app.command()
def recommend(
    situation: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help='What it is for: "standard training", "first production run", "underfitting", '
            '"out of memory", "testing the pipeline", "long sequences", "short sequences".',
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Device to try it against; the one here if left out."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model; the preset's if left out.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Estimate by the closed form, some per cent off.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Recommend a QLoRA preset for a situation, with the memory it takes on a device.

    Exit code 4: nothing fits the device.

    Example: lorafit presets recommend --situation "out of memory" --hardware a10g
    """
    from lorafit.cli.estimate_question import Options
    from lorafit.cli.recommend import recommend as find
    from lorafit.cli.recommend import recommendation_document, show_recommendation
    from lorafit.cli.settings_flags import RunChoices
    from lorafit.config.situations import find_situation, known_situations
    from lorafit.errors import ExitCode, UsageError

    given = {"--situation": situation, "--hardware": hardware, "--model": model}
    refuse_empty(given, hint="lorafit presets recommend --help")
    if situation is None:
        raise UsageError("no situation was given", where="--situation", hint=known_situations())
    chosen = find_situation(situation)
    choices = RunChoices(hardware=hardware, flags=flags_of(model=model))
    _, device = choices.resolve()
    found = find(chosen, choices, Options(fast=fast))
    if as_json:
        console.print_json(recommendation_document(found, device.name))
    else:
        show_recommendation(found, device.name)
    if not found.fits:
        raise typer.Exit(int(ExitCode.DEVICE))


def _full_settings(preset: "Preset") -> dict[str, Any]:
    from lorafit.config.layers import resolve_layers

    return resolve_layers([preset.layer]).settings.model_dump(mode="json")


def _by_row(preset: "Preset", _hardware: str | None) -> dict[str, Any]:
    rows = {
        f"{key}: {name}": value
        for key, row in preset.hardware.items()
        for name, value in row.items()
    }
    return _full_settings(preset) | rows


def _on_device(preset: "Preset", hardware: str | None) -> dict[str, Any]:
    from lorafit.config.batch import resolve_batch
    from lorafit.config.layers import resolve_layers
    from lorafit.hardware.detect import detect_device, planned_device

    device = detect_device("auto") if hardware == "auto" else planned_device(hardware or "")
    resolved = resolve_layers([preset.layer, preset.choose_row(device).layer])
    batch = resolve_batch(resolved, num_devices=1)
    return resolved.settings.model_dump(mode="json") | {
        "per_device_train_batch_size": batch.per_device_train_batch_size,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "effective_batch_size": batch.effective_batch_size,
    }
