"""The estimate against measured runs; `bench/memory_accuracy.py` has all of them."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.usefixtures("quiet_libraries")
BENCH = Path(__file__).parents[2] / "bench"


def load_bench() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location(
        "memory_accuracy_bench", BENCH / "memory_accuracy.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("run", "allocated", "process"),
    [("t4-056", 0.0001, 0.003), ("t4-050", 0.0001, 0.003), ("t4-053", 0.002, 0.03)],
)
def test_estimate_stays_within_its_error_on_measured_runs(
    run: str, allocated: float, process: float
) -> None:
    bench = load_bench()
    with bench.ROWS.open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["id"] == run)
    result = bench.compare(row)
    assert abs(result.allocated_error) <= allocated
    assert abs(result.process_error) <= process


@pytest.mark.slow
def test_all_measured_runs_stay_within_the_bounds() -> None:
    bench = load_bench()
    with bench.ROWS.open(newline="") as file:
        rows = [bench.compare(row) for row in csv.DictReader(file)]
    assert bench.broken_bounds(bench.summarize(rows)) == []
