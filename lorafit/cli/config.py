"""`lorafit config`: where every setting comes from, and whether a file is right."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.options import Json, refuse_empty
from lorafit.cli.settings_flags import RunChoices, with_settings

if TYPE_CHECKING:
    from lorafit.config.document import Document

app = typer.Typer(no_args_is_help=True)


@app.command()
@with_settings
def show(*, choices: RunChoices, as_json: Json = False) -> None:
    """Show every setting with its value and where the value comes from.

    Example: lorafit config show --preset balanced learning_rate=1e-4
    """
    from lorafit.cli.config_view import PLANNER_NOTE, settled_settings, tables
    from lorafit.config.batch import resolve_batch
    from lorafit.config.schema import SCHEMA_VERSION

    resolved, _ = choices.resolve()
    # As many as `train` uses unless it is told more.
    batch = resolve_batch(resolved, num_devices=1)
    settled = settled_settings(resolved, batch)
    for warning in resolved.warnings:
        console.warn(warning)
    if as_json:
        row = resolved.row
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "preset": resolved.preset,
                "row": {"key": row.key, "reason": row.reason} if row else None,
                "settings": {name: entry.as_dict() for name, entry in settled.items()},
                "batch": vars(batch),
                "decided_at_launch": [n for n, e in settled.items() if e.is_decided_at_launch],
                "warnings": list(resolved.warnings),
            }
        )
        return
    for group, rows in tables(settled):
        console.out(_table(group, ("setting", "value", "from"), rows))
    is_planned = any(entry.is_decided_at_launch for entry in settled.values())
    if resolved.row is not None:
        unless = ", unless another one is planned" if is_planned else ""
        console.say(f"row: {resolved.row.reason}{unless}")
    why = PLANNER_NOTE if is_planned else batch.reason
    console.say(f"batch: {batch.effective_batch_size} rows a step; {why}")


@app.command()
def validate(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Settings or preset: YAML, JSON or TOML.")
    ],
    as_json: Json = False,
) -> None:
    """Check a settings file or a preset, and name everything that is wrong with it.

    Example: lorafit config validate my.yaml
    """
    from lorafit.config.schema import SCHEMA_VERSION
    from lorafit.errors import ConfigError, UsageError

    if not file.strip():
        raise UsageError("the file's name is empty", hint="lorafit config validate mine.yaml")
    document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "file": file}
    try:
        warnings = _validate_file(Path(file))
    except ConfigError as error:
        if not as_json:
            raise
        problems = [vars(problem) for problem in error.problems]
        console.print_json(document | {"valid": False, "problems": problems, "warnings": []})
        raise typer.Exit(int(error.exit_code)) from None
    for warning in warnings:
        console.warn(warning)
    if as_json:
        console.print_json(document | {"valid": True, "problems": [], "warnings": list(warnings)})
    else:
        console.out(f"{file}: valid")


def _validate_file(path: Path) -> tuple[str, ...]:
    """Return the warnings that a valid file deserves."""
    from lorafit.config.batch import resolve_batch
    from lorafit.config.loading import load_document
    from lorafit.config.presets import load_preset_file
    from lorafit.config.resolve import resolve_run
    from lorafit.hardware.detect import planned_device

    document = load_document(path)
    if {"settings", "hardware"} & document.entries.keys():
        load_preset_file(path, _preset_name(path, document), label=str(path))
        return ()
    # The device decides only which row of a base preset applies: any will do to check the file.
    resolved = resolve_run(
        preset=None,
        config_file=path,
        overrides=(),
        flags={},
        environ={},
        device=planned_device("cpu"),
    )
    resolve_batch(resolved, num_devices=1)
    return resolved.warnings


@app.command()
def convert(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Python, JSON, YAML or TOML of another tool.")
    ],
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the settings here; without it, to stdout."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TOOL",
            help="python, hf-json, hydra, axolotl, llama-factory or trl; told by the keys if left "
            "out.",
        ),
    ] = None,
    num_processes: Annotated[
        int,
        typer.Option(
            min=1, max=4096, help="Processes it was run with: their effective batch is kept."
        ),
    ] = 1,
    as_json: Json = False,
) -> None:
    """Rewrite a configuration of another tool as settings for --config. Nothing in it is run.

    Reads Python files (literal assignments), TrainingArguments and LoraConfig as JSON, Hydra-style
    YAML, and the YAML of Axolotl, LLaMA-Factory and TRL; says what could not be carried over.

    Example: lorafit config convert configs/ablation1_best.py --output ablation1.yaml
    """
    from lorafit.cli.convert_view import show_conversion
    from lorafit.config.convert.dialects import KIND_NAMES
    from lorafit.config.convert.translate import convert_file
    from lorafit.config.convert.write import render_config, write_config
    from lorafit.errors import UsageError

    given = {"FILE": file, "--output": output, "--from": kind}
    refuse_empty(given, hint="lorafit config convert train.py")
    chosen = next((known for known in KIND_NAMES if known == kind), None)
    if kind is not None and chosen is None:
        hint = f"one of {', '.join(KIND_NAMES)}"
        raise UsageError(f"{kind!r} is not a tool that can be read", where="--from", hint=hint)
    conversion = convert_file(Path(file), kind=chosen, num_processes=num_processes)
    text = render_config(conversion)
    if output is not None:
        write_config(Path(output), text)
    show_conversion(conversion, text, output, as_json=as_json)


@app.command()
def groups(as_json: Json = False) -> None:
    """List the config groups: `training=aggressive` chooses a named set of settings.

    Example: lorafit config groups
    """
    from lorafit.config.groups import list_options
    from lorafit.config.schema import SCHEMA_VERSION

    options = list_options()
    if as_json:
        entries = [
            {"group": o.group, "name": o.name, "description": o.description, "settings": o.settings}
            for o in options
        ]
        console.print_json({"schema_version": SCHEMA_VERSION, "groups": entries})
        return
    rows = [
        (
            f"{o.group}={o.name}",
            o.description,
            ", ".join(f"{name}={value}" for name, value in o.settings.items()),
        )
        for o in options
    ]
    console.out(_table(None, ("type", "for", "settings"), rows))
    console.say("Single settings win over groups: lorafit train training=aggressive seed=7 ...")


@app.command()
def aliases(as_json: Json = False) -> None:
    """List the other names that settings are accepted under, and the names of sections.

    Example: lorafit config aliases
    """
    from lorafit.config.aliases import ALIASES, SECTIONS
    from lorafit.config.schema import SCHEMA_VERSION

    if as_json:
        console.print_json(
            {"schema_version": SCHEMA_VERSION, "aliases": ALIASES, "sections": sorted(SECTIONS)}
        )
        return
    console.out(_table(None, ("alias", "setting"), list(ALIASES.items())))
    console.say(
        "Settings may be grouped in sections, which carry no meaning of their own: "
        + ", ".join(sorted(SECTIONS))
    )
    console.say("A --config file may use Hugging Face's names too, such as load_in_4bit: true.")


def _preset_name(path: Path, document: "Document") -> str:
    """Return the name a preset's file has to give: `low`, or `family/low` if it says so."""
    node = document.entries.get("name")
    in_family = node is not None and isinstance(node.value, str) and "/" in node.value
    return f"{path.absolute().parent.name}/{path.stem}" if in_family else path.stem


def _table(title: str | None, columns: tuple[str, ...], rows: list[Any]) -> Any:
    from lorafit.cli.tables import plain_table

    return plain_table(title, columns, rows)
