"""The tables of docs/SYSTEMS.md: they say what lorafit resolves today, and every test they name."""

import importlib.util
import re
import sys
from types import ModuleType

import pytest
from tiny import ROOT

SCRIPT = ROOT / "docs" / "make_systems_tables.py"
TESTS = ROOT / "tests"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_systems_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_the_one_that_the_script_makes(tables: ModuleType) -> None:
    page = tables.PAGE.read_text("utf-8")
    assert tables.render(page) == page


def test_every_value_is_as_its_description_gives_it(tables: ModuleType) -> None:
    rows = [*tables.nli_rows(), *tables.qlora_rows(), *tables.reference_rows()]
    assert len(rows) > 100
    wrong = [row for row in rows if tables.found_value(row) != row.expected]
    assert not wrong


def test_every_test_that_the_page_names_is_there(tables: ModuleType) -> None:
    page = tables.PAGE.read_text("utf-8")
    named = set(re.findall(r"`((?:tests/)?[\w/]*test_\w+\.py)(?:::(test_\w+))?`", page))
    assert len(named) > 15
    for file, function in named:
        places = [ROOT / file, TESTS / "systems" / file, TESTS / "config" / file]
        path = next((place for place in places if place.is_file()), None)
        assert path is not None, file
        assert not function or f"def {function}(" in path.read_text("utf-8"), function
    guide = (TESTS / "systems" / "test_guide.py").read_text("utf-8")
    for function in set(re.findall(r"`(test_\w+)`", page)):
        assert f"def {function}(" in guide, function
