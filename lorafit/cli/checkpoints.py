"""`lorafit checkpoints`: list, verify, prune and compare the checkpoints of a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.options import Json
from lorafit.cli.tables import plain_table
from lorafit.errors import CheckpointError, UsageError
from lorafit.text import escape_control, excerpt
from lorafit.units import format_bytes

SCHEMA_VERSION = 1
_MAX_TENSORS = 8
_PEFT_PREFIX = "base_model.model.model."  # PEFT's wrappers, equal in every name

app = typer.Typer(no_args_is_help=True)

RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="The --output-dir of a run.", show_default=False)
]


@app.command("list")
def list_command(run_dir: RunFolder, as_json: Json = False) -> None:
    """List checkpoints: step, size, losses, whether whole, and what becomes of them.

    Example: lorafit checkpoints list outputs/first
    """
    from lorafit.training.run_folder.inventory import take_inventory

    inventory = take_inventory(_existing(run_dir))
    if as_json:
        console.print_json({"schema_version": SCHEMA_VERSION, **inventory.as_dict()})
        return
    columns = ("checkpoint", "step", "size", "loss", "validation_loss", "whole", "kept")
    rows = [
        (
            entry.folder.name,
            entry.step,
            None if entry.num_bytes is None else format_bytes(entry.num_bytes),
            _figure(entry.loss),
            _figure(entry.validation_loss),
            entry.problem is None,
            entry.fate,
        )
        for entry in inventory.entries
    ]
    if not rows:
        console.say(f"no checkpoints in {escape_control(str(run_dir))}")
    else:
        console.out(plain_table(None, columns, rows))
    for entry in inventory.entries:
        if entry.problem is not None:
            console.warn(entry.problem)
    for line in inventory.forecast_lines():
        console.say(line)


@app.command()
def verify(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_DIR|CHECKPOINT", help="A run, or one checkpoint.", show_default=False
        ),
    ],
    as_json: Json = False,
) -> None:
    """Check every file of every checkpoint against its manifest; exit 5 if one is damaged.

    Example: lorafit checkpoints verify outputs/first
    """
    from lorafit.training.run_folder.inventory import verify_all

    results = verify_all(_existing(path))
    if as_json:
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "checkpoints": [
                    {"checkpoint": str(folder), "whole": problem is None, "problem": problem}
                    for folder, problem in results
                ],
            }
        )
    for folder, problem in results:
        if problem is None:
            console.say(f"whole: {escape_control(str(folder))}")
        else:
            console.warn(problem)
    damaged = [folder for folder, problem in results if problem is not None]
    if results and not damaged:
        console.say(f"{_count(len(results))}, nothing damaged")
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(results)} checkpoints cannot be used",
            hint="a run passes them over by itself and continues from the newest whole one",
        )
    if not results:
        raise CheckpointError(
            "there are no checkpoints",
            where=str(path),
            hint="name the --output-dir of a run, or a checkpoint-N folder in it",
        )


@app.command()
def prune(
    run_dir: RunFolder,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Newest checkpoints to keep; none: the run's save_total_limit."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be deleted; delete nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Delete a run's own checkpoints beyond the newest and the best; nothing else is touched.

    Example: lorafit checkpoints prune outputs/first
    """
    from lorafit.training.run_folder.inventory import prune_run

    removed, freed = prune_run(_existing(run_dir), keep, dry_run=dry_run)
    if as_json:
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "dry_run": dry_run,
                "removed": [str(folder) for folder in removed],
                "freed_bytes": freed,
            }
        )
    verb = "would delete" if dry_run else "deleted"
    for folder in removed:
        console.say(f"{verb} {escape_control(str(folder))}")
    if removed:
        console.say(f"{verb} {_count(len(removed))}, {format_bytes(freed)}")
    else:
        console.say("nothing to delete: no checkpoint is beyond the newest and the best that stay")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="CHECKPOINT", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="CHECKPOINT", show_default=False)],
    as_json: Json = False,
) -> None:
    """Compare two checkpoints, of one run or of two: files, adapter, schedule, settings.

    Example: lorafit checkpoints diff outputs/first/checkpoint-100 outputs/first/checkpoint-200
    """
    from lorafit.training.run_folder.compare import compare_checkpoints

    found = compare_checkpoints(_existing(first), _existing(second))
    if as_json:
        console.print_json({"schema_version": SCHEMA_VERSION, **found.as_dict()})
        return
    _show_comparison(found)


def _show_comparison(found: Any) -> None:
    from lorafit.training.run_folder.mismatch import short_value

    one, other, rates = found.first, found.second, found.learning_rates
    facts = [
        ("step", one.step, other.step),
        ("loss", *(_figure(found_in.facts.get("loss")) for found_in in (one, other))),
        ("validation_loss", *(_figure(found_in.validation_loss) for found_in in (one, other))),
        ("learning_rate", *(None if rate is None else f"{rate:.3g}" for rate in rates)),
        *((name, *map(short_value, values)) for name, values in found.settings.items()),
    ]
    console.out(plain_table(None, ("", *_headings(one.folder, other.folder)), facts))
    if found.is_equal:
        console.say("equal, bit for bit: adapter, optimizer, schedule and random state")
        return
    console.say(f"different files: {escape_control(', '.join(found.different_files))}")
    console.say(f"{len(found.tensors)} of {found.num_tensors} adapter tensors differ")
    if found.tensors:
        rows = [
            (
                tensor.name.removeprefix(_PEFT_PREFIX),
                f"{tensor.relative_norm:.3g}",
                f"{tensor.max_difference:.3g}",
            )
            for tensor in found.tensors[:_MAX_TENSORS]
        ]
        columns = ("tensor", "relative change", "largest change")
        console.out(plain_table("most different", columns, rows))


def _figure(loss: float | None) -> str | None:
    return None if loss is None else f"{loss:.4f}"


def _count(number: int) -> str:
    return f"{number} checkpoint{'' if number == 1 else 's'}"


def _headings(one: Path, other: Path) -> tuple[str, str]:
    """Return the names of two checkpoints, with their runs' where they are called the same."""
    if one.name != other.name or one == other:
        return one.name, other.name
    return f"{one.parent.name}/{one.name}", f"{other.parent.name}/{other.name}"


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(
            f"there is no folder {excerpt(str(path))}",
            hint="name the --output-dir of a run, or a checkpoint-N folder in it",
        )
    return path
