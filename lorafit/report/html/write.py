"""report.html on disk: written at the end of every run, and on request."""

import os
from collections.abc import Sequence
from pathlib import Path

from lorafit.errors import StorageError
from lorafit.files import storage_errors
from lorafit.report.html.render import GENERATOR, render_page
from lorafit.report.html.source import RunData, load_run

REPORT_FILE = "report.html"
_MARK = f'<meta name="generator" content="{GENERATOR} '
_MARK_WITHIN = 4096


def write_report(runs: Sequence[RunData], output: Path) -> None:
    """Write the page of one run, or the comparison of several, as a whole or not at all.

    Raises:
        StorageError: the file cannot be written, or holds something else than a report.
    """
    with storage_errors("the report cannot be written", output, hint="choose another --output"):
        if output.exists() and not is_report(output):
            raise StorageError(
                "holds something else than a lorafit report, which would be lost",
                where=str(output),
                hint="choose another --output",
            )
        staging = output.with_name(f".staging-{output.name}")
        staging.write_text(render_page(runs), encoding="utf-8")
        os.replace(staging, output)


def is_report(path: Path) -> bool:
    """Return whether a file begins like a report that lorafit wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _MARK.encode() in stream.read(_MARK_WITHIN)


def write_run_report(run_dir: Path) -> str | None:
    """Write a run's report.html; return why it could not be, for nothing of a run depends on it."""
    try:
        write_report([load_run(run_dir)], run_dir / REPORT_FILE)
    except Exception as problem:  # a page must never cost a trained adapter, whatever it raises
        return str(problem) or type(problem).__name__
    return None
