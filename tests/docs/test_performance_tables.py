"""The tables of docs/PERFORMANCE.md: they say what bench/results holds."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny import ROOT

SCRIPT = ROOT / "docs" / "make_performance_tables.py"
MEDIAN = {"tokens_per_cpu_second": 1234.4, "peak_bytes": 200 * 2**20, "first_step_seconds": 4.04}
RATIOS = {"tokens_per_cpu_second": 3.004, "peak_bytes": 0.5}


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_performance_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_results_and_the_shape_of_phi_2_say(tables: Any) -> None:
    # All but `bytes`, which takes traces of four steps of Phi-2.
    names = tuple(name for name in tables.TABLES if name != "bytes")
    page = tables.PAGE.read_text("utf-8")
    assert tables.render(page, names) == page
    assert "<!-- bytes: generated -->\n| 4 x 1024" in page


def test_flops_add_up_to_four_a_weight_and_those_of_adapters_and_attention(tables: Any) -> None:
    rows = [line.split("|")[1:-1] for line in tables.flops_table()[2:]]
    *parts, (_, forward, backward, _) = [[cell.strip() for cell in row] for row in rows]
    weights = [row for row in parts if not row[0].startswith(("adapters", "attention"))]
    million = sum(
        float(row[1].replace(",", "")) + float(row[2].replace(",", "")) for row in weights
    )
    # 2.78 G parameters, less the input embedding.
    assert million * 1e6 == pytest.approx(4 * (2.7797e9 - 51200 * 2560), rel=2e-3)
    assert float(forward.replace(",", "")) < float(backward.replace(",", ""))


def test_measured_and_failed_projects_stand_in_the_table(
    tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = {
        "trl": {"name": "TRL, plain", "median": MEDIAN, "lorafit_against_it": RATIOS},
        "axolotl": {"name": "Axolotl", "median": None, "lorafit_against_it": {}},
    }
    document = {
        "date": "2026-01-01",
        "device": {"name": "A CPU"},
        "rounds": 3,
        "workload": {"tokens": 45304},
        "peers": peers,
        "goals": [{"name": "faster than TRL", "wanted": 5.0, "reached": 3.0, "met": False}],
    }
    (tmp_path / "throughput_cpu_10m.json").write_text(json.dumps(document))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    made = tables.cpu_table("10m")
    assert "| TRL, plain | 1,234 | 3.00x | 200 | 0.50x | 4.0 |" in made
    assert "| Axolotl | failed | | | | |" in made
    assert "| 10m: faster than TRL | 5 | 3 not met |" in tables.goals_table()
    assert tables.cpu_table("60m") == ["Not measured yet."]
