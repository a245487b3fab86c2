"""The tables of docs/MEMORY.md: every shipped row stands in them, with the settings of today."""

import importlib.util
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from tiny import ROOT, child_environment

from lorafit.config.presets import DEFAULT_ROW, list_presets

SCRIPT = ROOT / "docs" / "make_memory_tables.py"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_memory_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cells_of(tables: Any, name: str) -> list[list[str]]:
    page = tables.PAGE.read_text("utf-8")
    table = page.split(f"<!-- {name}: generated -->\n")[1].split(f"<!-- end {name} -->")[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_every_row_of_every_preset_stands_in_the_table(tables: Any) -> None:
    shown = cells_of(tables, "presets")
    assert [row[:4] for row in shown] == [row.facts for row in tables.shipped_rows()]
    named = {
        (preset.name, key) for preset in list_presets() for key in preset.rows if key != DEFAULT_ROW
    }
    assert named <= {(row[0].strip("`"), row[1].strip("`")) for row in shown}
    own = {preset.name for preset in list_presets() if "/" not in preset.name}
    assert own == {row[0].strip("`") for row in shown}


def test_each_promise_of_the_guide_is_set_beside_the_estimate(tables: Any) -> None:
    shown = {(row[0], row[1]): row[3] for row in cells_of(tables, "presets") if row[3]}
    assert shown == {
        (f"`{preset}`", f"`{hardware}`"): f"about {gigabytes} GB"
        for (preset, hardware), gigabytes in tables.GUIDE_GIGABYTES.items()
    }
    judged = cells_of(tables, "guide")
    assert len(judged) == len(shown)
    assert all(re.search("for a plain script", row[-1]) for row in judged)


def test_every_shipped_row_fits_its_device_with_lorafit(tables: Any) -> None:
    for row in cells_of(tables, "presets"):
        assert re.fullmatch(r"(fits|tight) \(\d+%\)", row[5]), row


def test_accuracy_is_that_of_the_results_in_bench(tables: Any) -> None:
    page = tables.PAGE.read_text("utf-8")
    assert tables.render(page, ("accuracy", "peers")) == page


@pytest.mark.slow
def test_estimates_in_the_tables_are_those_of_today() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, env=child_environment()
    )
    assert done.returncode == 0, done.stderr
