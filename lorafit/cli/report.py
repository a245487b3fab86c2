"""`lorafit report`: a run as one HTML file, or several runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.completion import complete_runs
from lorafit.cli.options import Json
from lorafit.errors import UsageError
from lorafit.text import escape_control

if TYPE_CHECKING:
    from lorafit.report.html.source import RunData

SCHEMA_VERSION = 1
COMPARISON_FILE = "comparison.html"


def command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Output folders of `lorafit train`.",
            autocompletion=complete_runs,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            help=f"File to write: RUN/report.html for one run, {COMPARISON_FILE} for several.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's report, or compare several runs: curves, results, settings that differ.

    The report is one HTML file that needs no network. `train` writes it at the end of every run.

    Examples:
      lorafit report outputs/first

      lorafit report outputs/first outputs/second --output compared.html
    """
    if output == "":
        raise UsageError("--output is empty", hint="--output report.html")
    from lorafit.report.html.source import load_run, tell_apart
    from lorafit.report.html.write import REPORT_FILE, write_report

    folders = [Path(name) for name in dict.fromkeys(runs)]
    found = tell_apart([load_run(folder) for folder in folders])
    default = folders[0] / REPORT_FILE if len(folders) == 1 else Path(COMPARISON_FILE)
    path = Path(output) if output else default
    write_report(found, path)
    if as_json:
        console.print_json(_document(found, path))
        return
    console.out(escape_control(str(path)))
    console.say(f"next: open it in a browser, or watch a run that goes on: {_serve(folders[0])}")


def _serve(folder: Path) -> str:
    return f"lorafit serve {escape_control(str(folder))}"


def _document(runs: "list[RunData]", path: Path) -> dict[str, Any]:
    from lorafit.report.html.comparison import compare_runs
    from lorafit.report.html.figures import figures_of

    differences = compare_runs(runs)
    return {
        "schema_version": SCHEMA_VERSION,
        "output": str(path),
        "runs": [
            {
                "name": run.name,
                "run_dir": str(run.folder),
                "status": run.record["status"],
                "results": figures_of(run),
            }
            for run in runs
        ],
        "differences": {
            "settings": {row.name: row.values for row in differences.settings},
            "circumstances": {row.name: row.values for row in differences.circumstances},
        },
    }
