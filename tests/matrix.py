"""A pytest plugin: which rows of the reliability matrices were tested, and what came of it.

A test says which rows it proves with `@pytest.mark.row("B21")`. With `--matrix-json FILE`, every
such test is recorded with its outcome; `docs/make_reliability_tables.py` makes tables of the file.
A row whose tests were skipped or left out is recorded as that, and never as passed.
"""

import json
import platform
import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

ROWS_FILE = Path(__file__).with_name("matrix_rows.toml")
SCHEMA_VERSION = 1
_PACKAGES = ("torch", "transformers", "peft", "accelerate")
# Sorted by how much they say: the worst of a test's phases is the test's outcome.
_OUTCOMES = ("failed", "skipped", "passed")


def known_rows() -> dict[str, str]:
    """Return the title of every row of the matrices, by its id such as `B21`."""
    tables = tomllib.loads(ROWS_FILE.read_text(encoding="utf-8"))
    return {row: title for table in tables.values() for row, title in table.items()}


def rows_of(item: pytest.Item) -> list[str]:
    """Return the rows that a test is marked with."""
    return [str(row) for mark in item.iter_markers("row") for row in mark.args]


def story_of(item: pytest.Item) -> str:
    """Return what a test does in words: its docstring's first line, or its name as a sentence."""
    function = getattr(item, "function", None)
    documented = (getattr(function, "__doc__", None) or "").strip().splitlines()
    if documented:
        return documented[0].rstrip(".")
    name = getattr(item, "originalname", None) or item.name
    return re.sub(r"^test_([bf]\d+_)*", "", name).replace("_", " ")


class MatrixRecorder:
    """Collects one result a test and row."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._marked: dict[str, tuple[list[str], str]] = {}
        self._outcomes: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note every test with rows, those that will be deselected too."""
        self._note(items)

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        """Note the tests that this run leaves out."""
        self._note(items)
        for item in items:
            self._outcomes[item.nodeid] = ("not run", "left out of this run")

    def _note(self, items: Iterable[pytest.Item]) -> None:
        for item in items:
            if rows := rows_of(item):
                self._marked[item.nodeid] = (rows, story_of(item))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst outcome of a test's phases, with the reason of a skip."""
        before = self._outcomes.get(report.nodeid, ("passed", ""))
        if _OUTCOMES.index(report.outcome) < _OUTCOMES.index(before[0]):
            self._outcomes[report.nodeid] = (report.outcome, _reason(report))
        else:
            self._outcomes[report.nodeid] = before

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        results = [
            {"row": row, "test": test, "outcome": outcome, "reason": reason, "story": story}
            for test, (rows, story) in self._marked.items()
            for outcome, reason in [self._outcomes.get(test, ("not run", "the run was stopped"))]
            for row in rows
        ]
        document = {"schema_version": SCHEMA_VERSION, "machine": _machine(), "results": results}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _reason(report: pytest.TestReport) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return ""


def _machine() -> dict[str, str]:
    found = {"system": platform.system(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--matrix-json`."""
    parser.addoption(
        "--matrix-json",
        metavar="FILE",
        help="write which rows of the reliability matrices were tested, and the outcomes",
    )


def pytest_configure(config: Any) -> None:
    """Record where the option asks for it."""
    if path := config.getoption("--matrix-json"):
        config.pluginmanager.register(MatrixRecorder(Path(path)), "matrix-recorder")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Refuse a row that the matrices do not have: it would be counted nowhere."""
    unknown = [row for row in rows_of(item) if row not in known_rows()]
    if unknown:
        raise pytest.UsageError(f"{item.nodeid} is marked with unknown rows: {unknown}")
