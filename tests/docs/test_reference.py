"""docs/reference says what the code says, and nothing is missing from it."""

import re
from types import ModuleType

import pytest
from pages import load_script

from lorafit.config.schema import Settings


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load_script("make_reference")


@pytest.mark.parametrize(
    "page", ["SETTINGS.md", "CLI.md", "EXIT-CODES.md", "DOCTOR.md", "PRESETS.md"]
)
def test_a_page_is_the_one_that_the_script_makes(reference: ModuleType, page: str) -> None:
    assert (reference.FOLDER / page).read_text("utf-8") == reference.PAGES[page]()


def test_every_setting_and_every_page_is_there(reference: ModuleType) -> None:
    text = (reference.FOLDER / "SETTINGS.md").read_text("utf-8")
    assert set(re.findall(r"^### `(\w+)`$", text, re.MULTILINE)) == set(Settings.model_fields)
    assert {path.name for path in reference.FOLDER.glob("*.md")} == set(reference.PAGES)


def test_every_command_with_json_stands_on_the_page_of_documents(reference: ModuleType) -> None:
    commands = (reference.FOLDER / "CLI.md").read_text("utf-8")
    sections = re.split(r"^## `(.+)`$", commands, flags=re.MULTILINE)
    pairs = zip(sections[1::2], sections[2::2], strict=True)
    with_json = {name for name, body in pairs if "`--json`" in body}
    shown = (reference.FOLDER / "JSON.md").read_text("utf-8")
    # The demo's document takes minutes, and is that of its own tests.
    missing = {name for name in with_json if f"## `{name} " not in shown} - {"lorafit demo"}
    assert not missing


@pytest.mark.slow
def test_commands_print_the_documents_that_the_page_lists(reference: ModuleType) -> None:
    def keys(page: str) -> set[tuple[str, str]]:
        sections = re.split(r"^## `(.+)`$", page, flags=re.MULTILINE)
        return {
            (name, key)
            for name, body in zip(sections[1::2], sections[2::2], strict=True)
            # What doctor finds is this machine's.
            if "doctor" not in name
            for key in re.findall(r"^\| `(\S+)` \|", body, re.MULTILINE)
        }

    assert keys(reference.documents_page()) == keys(
        (reference.FOLDER / "JSON.md").read_text("utf-8")
    )
