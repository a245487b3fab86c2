"""The simulation of docs/SCALING.md: its arithmetic, and that the page says what it gives."""

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from tiny import ROOT

SCRIPT = ROOT / "docs" / "make_scaling_tables.py"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_scaling_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def step(tables: Any, **changes: Any) -> Any:
    values = {
        "tokens": 1000, "micro_steps": 2, "compute_seconds": 1.0, "base_bytes": 8e9,
        "layer_bytes": 1e9, "gradient_bytes": 1e8, "alone_bytes": 12e9, "whole_bytes": 13e9,
        "sharded_bytes": {8: 6e9, 64: 5e9, 512: 4e9}, "peak_flops": 1e14, "capacity_bytes": 20e9,
    }  # fmt: skip
    return tables.Step(**{**values, **changes})


def test_eight_devices_fetch_seven_eighths_from_each_other(tables: Any) -> None:
    link = tables.Link("x", "x", 100e9, 10e9)
    assert tables.gather_seconds(8e9, 1, link) == 0
    assert tables.gather_seconds(8e9, 8, link) == pytest.approx(0.07, rel=1e-3)
    # An eighth of it comes from seven other nodes, at a tenth of the speed.
    assert tables.gather_seconds(8e9, 64, link) == pytest.approx(0.07 + 0.0875, rel=1e-2)


def test_data_parallel_steps_take_longer_with_more_devices_and_hold_the_same(tables: Any) -> None:
    steps = [tables.simulate_ddp(step(tables), n, tables.LINKS[0]) for n in tables.NUM_DEVICES]
    seconds = [simulated.seconds for simulated in steps]
    assert seconds == sorted(seconds)
    assert seconds[0] == 1.0
    assert [simulated.bytes_held for simulated in steps] == [12e9, 13e9, 13e9, 13e9]


def test_sharding_holds_what_was_traced_for_so_many_processes(tables: Any) -> None:
    held = [tables.simulate_fsdp(step(tables), n, tables.LINKS[0]).bytes_held
            for n in tables.NUM_DEVICES]  # fmt: skip
    assert held == [12e9, 6e9, 5e9, 4e9]
    slow = tables.Link("x", "x", 1e9, 1e9)
    assert tables.simulate_fsdp(step(tables), 8, slow).seconds > 4 * 7  # four fetches of 7 GB


def test_what_does_not_fit_has_no_speed(tables: Any) -> None:
    small = step(tables, capacity_bytes=10e9)
    assert not tables.simulate_ddp(small, 8, tables.LINKS[0]).fits
    assert tables.simulate_fsdp(small, 8, tables.LINKS[0]).fits


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_libraries")
def test_the_page_holds_what_the_simulation_gives(tables: Any) -> None:
    page = tables.PAGE.read_text("utf-8")
    assert tables.render(page) == page
