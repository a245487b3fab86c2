"""docs/RELIABILITY.md: every row stands there, and nothing is called passed that did not run."""

import importlib.util
import json
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import matrix
import pytest
from tiny import ROOT, child_environment

SCRIPT = ROOT / "docs" / "make_reliability_tables.py"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reliability_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def result(row: str, outcome: str, **more: str) -> dict[str, str]:
    return {"row": row, "test": "t", "outcome": outcome, "reason": "", "story": "s", **more}


def document(*results: dict[str, str]) -> dict[str, Any]:
    return {"machine": {"system": "Linux", "python": "3.11"}, "results": list(results)}


def test_every_row_of_both_matrices_stands_in_the_page(tables: Any) -> None:
    page = tables.PAGE.read_text("utf-8")
    for name, titles in tables.read_rows().items():
        part = page.split(f"<!-- {name}: generated -->\n")[1].split(f"<!-- end {name} -->")[0]
        lines = re.findall(r"^\| ([BF]\d+) \| (.*?) \|", part, re.MULTILINE)
        assert dict(lines) == titles
        assert len(lines) == len(titles)


def test_rows_are_numbered_without_gaps() -> None:
    rows = matrix.known_rows()
    for letter, last in (("F", 42), ("B", 69)):
        assert [row for row in rows if row[0] == letter] == [
            f"{letter}{number}" for number in range(1, last + 1)
        ]


def test_every_row_that_a_test_names_exists() -> None:
    known = matrix.known_rows()
    named = {
        row
        for path in (ROOT / "tests").rglob("test_*.py")
        for call in re.findall(r"mark\.row\(([^)]*)\)", path.read_text("utf-8"))
        for row in re.findall(r'"([^"]+)"', call)
    }
    assert named <= set(known)
    assert set(known) - named == set(), "rows without a test"


def test_each_promise_names_rows_that_exist(tables: Any) -> None:
    promises = tables.PAGE.read_text("utf-8").split("## What is promised")[1].split("\n## ")[0]
    named = re.findall(r"\b[FB]\d+\b", promises)
    assert len(named) > 30
    assert set(named) <= set(matrix.known_rows())


def test_a_machine_that_reports_twice_is_named_once(tables: Any) -> None:
    here, there = document(result("F1", "passed")), document(result("F2", "passed"))
    gpu = {**there, "machine": {"system": "Linux", "python": "3.12"}}
    lines = tables.machines_list([here, there, gpu, here]).splitlines()
    assert lines == ["- Linux: python 3.11", "- Linux: python 3.12"]


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([], "no test"), (["passed"], "passed"), (["skipped"], "skipped"),
        (["passed", "skipped"], "passed in part"), (["passed", "not run"], "passed in part"),
        (["passed", "failed"], "failed"), (["not run"], "not run"),
        (["skipped", "not run"], "skipped"),
    ],
)  # fmt: skip
def test_skipped_is_not_passed(tables: Any, outcomes: list[str], state: str) -> None:
    cases = [tables.Case("B1", f"t{i}", outcome, "", "") for i, outcome in enumerate(outcomes)]
    assert tables.state_of(cases) == state


def test_a_machine_with_a_gpu_fills_in_what_another_skipped(tables: Any) -> None:
    here = document(result("F22", "skipped", reason="needs an NVIDIA GPU"), result("F1", "passed"))
    there = document(result("F22", "passed"), result("F1", "skipped"))
    for documents in ([here, there], [there, here]):
        rows = tables.merge_results(documents)
        assert {row: tables.state_of(cases) for row, cases in rows.items()} == {
            "F22": "passed",
            "F1": "passed",
        }
    failed = document(result("F1", "failed"))
    assert tables.state_of(tables.merge_results([here, failed])["F1"]) == "failed"


def test_a_reason_for_skipping_is_shown(tables: Any) -> None:
    rows = tables.merge_results([document(result("B8", "skipped", reason="needs a | GPU"))])
    assert "| skipped | 0 of 1 | *skipped: s: needs a \\| GPU* |" in tables.rows_table(
        {"B8": "title"}, rows
    )
    assert "| no test | 0 | *nothing yet* |" in tables.rows_table({"B9": "title"}, rows)


def test_the_plugin_records_every_outcome(tmp_path: Any) -> None:
    """One test that passes, one that fails, one skipped, one left out: each under its rows."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.row('B1', 'B2')\n"
        "def test_b1_one_thing_is_said(): pass\n"
        "@pytest.mark.row('B3')\n"
        "def test_b3(): '''What was done.'''; assert False\n"
        "@pytest.mark.row('B4')\n"
        "def test_b4_a_gpu(): pytest.skip('none here')\n"
        "@pytest.mark.row('F1')\n"
        "@pytest.mark.slow\n"
        "def test_f1_a_kill(): pass\n"
        "def test_of_no_row(): pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  row: r\n  slow: s\n")
    out = tmp_path / "out.json"
    command = ["-m", "pytest", "-q", "-p", "matrix", "-m", "not slow", "--matrix-json", str(out)]
    subprocess.run(
        [sys.executable, *command, str(tmp_path)],
        capture_output=True, cwd=tmp_path,
        env=child_environment(PYTHONPATH=str(ROOT / "tests"), PYTHONWARNINGS=""),
    )  # fmt: skip
    found = {
        (r["row"], r["outcome"], r["reason"], r["story"])
        for r in json.loads(out.read_text())["results"]
    }
    assert found == {
        ("B1", "passed", "", "one thing is said"),
        ("B2", "passed", "", "one thing is said"),
        ("B3", "failed", "", "What was done"),
        ("B4", "skipped", "none here", "a gpu"),
        ("F1", "not run", "left out of this run", "a kill"),
    }
