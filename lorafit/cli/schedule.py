"""`lorafit schedule`: the learning rate of a run before it starts, and what a change does to it."""

import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.options import Json
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.errors import UsageError

if TYPE_CHECKING:
    from lorafit.config.layers import Resolved
    from lorafit.config.schedule_changes import Course

SCHEMA_VERSION = 1
_ASSUMED_ROWS = 1000
_JSON_POINTS = 200
_HEIGHT = 9
_MOST_COLUMNS = 100

Rows = Annotated[
    int | None,
    typer.Option(
        "--rows",
        min=1,
        help="Training rows, where there is no data yet. [dim]\\[of --data, else 1000][/dim]",
        metavar="INTEGER",
    ),
]
Compare = Annotated[
    float | None,
    typer.Option(
        "--compare",
        min=0.01,
        help="Compare with the same run of so many epochs. [dim]\\[with the preset][/dim]",
        metavar="EPOCHS",
    ),
]
Plot = Annotated[
    str | None,
    typer.Option("--plot", help="Draw the curves into a .png or .svg file.", metavar="FILE"),
]


@with_settings
def command(
    choices: RunChoices,
    rows: Rows = None,
    compare: Compare = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Show the learning rate of a run before it starts, and what a change does to it.

    Examples:
      lorafit schedule --preset balanced --data my.jsonl

      lorafit schedule --preset balanced --epochs 5 --compare 2

      lorafit schedule --preset balanced --rows 5000 warmup_steps=100 --plot rates.png
    """
    from lorafit.config.schedule_changes import describe_changes, find_schedule_warnings

    if plot is not None:
        from lorafit.report.schedule_chart import require_chart_file

        require_chart_file(Path(plot))
    resolved, device = choices.resolve()
    num_rows, why_rows = _count_rows(resolved, rows)
    new = _course("this run", resolved, num_rows)
    if compare is None:
        old = _preset_course(resolved, new)
    else:
        old = _other_epochs(resolved, num_rows, compare)
    changes = describe_changes(old, new) if old is not None else []
    warnings = find_schedule_warnings(new, old)
    if as_json:
        document = {
            "schema_version": SCHEMA_VERSION,
            "preset": resolved.preset,
            "hardware": device.catalog_key or device.kind,
            "num_rows": num_rows,
            "rows_reason": why_rows,
            "run": _document(new),
            "compared_with": _document(old) if old is not None else None,
            "changes": changes,
            "warnings": warnings,
        }
        console.print_json(document)
    else:
        _print(new, old, changes, warnings, why_rows)
    if plot is not None:
        from lorafit.report.schedule_chart import write_chart

        write_chart(Path(plot), [new] if old is None else [new, old])
        console.say(f"curves drawn into {plot}")


def _count_rows(resolved: "Resolved", rows: int | None) -> tuple[int, str]:
    """Return the rows to train on, and where the number comes from."""
    settings = resolved.settings
    if rows is not None and settings.data is not None:
        raise UsageError(
            "--rows and --data both say how many rows there are",
            hint="leave one of them out",
        )
    if rows is not None:
        return rows, f"{rows:,} training rows, as --rows says"
    if settings.data is None:
        return _ASSUMED_ROWS, (
            f"{_ASSUMED_ROWS:,} training rows are assumed: --data FILE or --rows N says how many"
        )
    from lorafit.data.load import scan_source
    from lorafit.data.sources import resolve_source

    source = resolve_source(settings.data, settings.data_split)
    facts, _ = scan_source(source, settings, lambda record: None)
    found = facts.num_records
    held_out = 0 if settings.validation_data else round(found * settings.validation_split)
    return max(1, found - held_out), (
        f"{found - held_out:,} of {found:,} rows of {facts.name}, without those held out; rows "
        "with nothing to learn are only known once they are tokenized"
    )


def _course(label: str, resolved: "Resolved", num_rows: int) -> "Course":
    from lorafit.config.batch import resolve_batch
    from lorafit.config.schedule import plan_schedule
    from lorafit.config.schedule_changes import Course

    batch = resolve_batch(resolved, num_devices=1)
    return Course(
        label, resolved.settings, batch, plan_schedule(num_rows, batch, resolved.settings)
    )


def _other_epochs(resolved: "Resolved", num_rows: int, epochs: float) -> "Course":
    settings = resolved.settings.model_copy(update={"num_train_epochs": epochs, "max_steps": None})
    return _course(f"{epochs:g} epochs", replace(resolved, settings=settings), num_rows)


def _preset_course(resolved: "Resolved", new: "Course") -> "Course | None":
    """Return the run as its preset alone would have it, where that is another one."""
    from lorafit.config.schedule_changes import baseline_of, differs

    old = baseline_of(resolved, new.schedule.num_rows, new.batch.num_devices)
    return old if old is not None and differs(old, new) else None


def _document(course: "Course") -> dict[str, Any]:
    from lorafit.config.schedule import HIGH_RATE

    schedule, total = course.schedule, course.schedule.total_steps
    stride = max(1, total // _JSON_POINTS)
    steps = sorted({*range(0, total, stride), schedule.warmup_steps, total - 1})
    return {
        "label": course.label,
        "learning_rate": course.settings.learning_rate,
        "lr_scheduler_type": course.settings.lr_scheduler_type,
        "effective_batch_size": course.batch.effective_batch_size,
        **asdict(schedule),
        **asdict(course.rates),
        "high_rate_fraction": HIGH_RATE,
        "curve": [{"step": step + 1, "learning_rate": course.rate_at(step)} for step in steps],
    }


def _print_block(title: str, lines: list[str], width: int) -> None:
    console.out(f"\n{title}")
    for line in lines:
        wrapped = textwrap.wrap(line, max(20, min(width, _MOST_COLUMNS) - 4))
        console.out("\n    ".join([f"  {wrapped[0]}", *wrapped[1:]]))


def _print(
    new: "Course", old: "Course | None", changes: list[str], warnings: list[str], why_rows: str
) -> None:
    from lorafit.cli.text_plot import PlotLine, draw_lines

    stdout = console.stdout_console()
    courses = [new] if old is None else [new, old]
    drawn = [PlotLine(c.label, c.schedule.total_steps, c.rate_at) for c in courses]
    for line in draw_lines(
        drawn,
        width=min(stdout.width, _MOST_COLUMNS),
        height=_HEIGHT,
        ascii_only=not stdout.encoding.startswith("utf"),
    ):
        console.out(line)
    for course in courses:
        _print_block(course.label, course.lines(), stdout.width)
    if old is not None:
        nothing = ["nothing that the learning rate depends on differs"]
        _print_block(f"this run beside {old.label}", changes or nothing, stdout.width)
    console.say()
    console.say(why_rows)
    for warning in warnings:
        console.warn(warning)
