"""`lorafit config`: where every setting comes from, and whether a file is right."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.settings_flags import RunChoices, with_settings

app = typer.Typer(no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.command()
@with_settings
def show(*, choices: RunChoices, as_json: _Json = False) -> None:
    """Show every setting with its value and where the value comes from."""
    from lorafit.config.batch import resolve_batch
    from lorafit.config.schema import SCHEMA_VERSION, SETTING_GROUPS, Settings, setting_group

    resolved, device = choices.resolve()
    batch = resolve_batch(resolved, device.num_devices)
    values = resolved.settings.model_dump(mode="json")
    for warning in resolved.warnings:
        console.warn(warning)
    if as_json:
        row = resolved.row
        origins = resolved.origins
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "preset": resolved.preset,
                "row": {"key": row.key, "reason": row.reason} if row else None,
                "settings": {
                    name: {"value": value, "origin": origins[name].text}
                    for name, value in values.items()
                },
                "batch": vars(batch),
                "warnings": list(resolved.warnings),
            }
        )
        return
    for group in SETTING_GROUPS:
        names = [name for name in Settings.model_fields if setting_group(name) == group]
        rows = [(name, values[name], resolved.origins[name].text) for name in names]
        console.out(_table(group, ("setting", "value", "from"), rows))
    if resolved.row is not None:
        console.say(f"row: {resolved.row.reason}")
    console.say(f"batch: {batch.effective_batch_size} rows a step; {batch.reason}")


@app.command()
def validate(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Settings or preset: YAML, JSON or TOML.")
    ],
    as_json: _Json = False,
) -> None:
    """Check a settings file or a preset, and name everything that is wrong with it."""
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

    if {"settings", "hardware"} & load_document(path).entries.keys():
        load_preset_file(path, path.stem, label=str(path))
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
def aliases(as_json: _Json = False) -> None:
    """List the other names that settings are accepted under, and the names of sections."""
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


def _table(title: str | None, columns: tuple[str, ...], rows: list[Any]) -> Any:
    from lorafit.cli.tables import plain_table

    return plain_table(title, columns, rows)
