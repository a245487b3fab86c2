"""Commands that stand in the documents: all of them parse, and those that can run offline do."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from pages import DOCS, Line, commands_of, load_script
from tiny import ROOT

from lorafit.cli.main import build_app, normalize_arguments

GUIDES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LINES = [line for path in GUIDES for line in commands_of(path)]
COMMANDS = [line for line in LINES if line.text.startswith("lorafit ")]
# Run page by page, so that a command finds what those before it left.
RUN_PAGES = (
    "README.md", "docs/QUICKSTART.md", "docs/HARDWARE.md", "docs/DATA.md", "docs/TUNING.md",
    "docs/WATCHING.md", "docs/RESUME.md", "docs/APPLE.md", "docs/PHI2-README.md",
)  # fmt: skip
# What is not run, and why.
NOT_RUN = {
    r"lorafit demo": "takes minutes; tests/demo runs it",
    r"lorafit (serve|tensorboard) ": "goes on until Ctrl-C",
    r"lorafit chat ": "waits for a person; tests/cli runs it",
    r"--gpus |--num-machines ": "needs devices that a test machine lacks",
}
# `doctor` ends with 1 where something is wrong with the machine.
ALLOWED = {"doctor": (0, 1)}


def parse(words: list[str]) -> Any:
    """Return the context of a command line; typer raises what is wrong with it."""
    command = typer.main.get_command(build_app(words[0]))
    rest = normalize_arguments(words)
    name = "lorafit"
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    return command.make_context(name, rest)


@pytest.mark.parametrize("line", COMMANDS, ids=[f"{c.page}: {c.text[:60]}" for c in COMMANDS])
def test_every_command_parses(line: Line) -> None:
    words = shlex.split(line.text)[1:]
    if words[-1] == "--help":
        words = words[:-1]
        assert words
        return
    # `...` stands for the flags of the row before.
    parse([word for word in words if word != "..."])


def test_a_command_that_does_not_exist_fails() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["train", "--no-such-flag"])
    with pytest.raises(KeyError):
        parse(["no-such-command"])


def test_shell_lines_are_lorafit_make_or_known() -> None:
    known = (
        r"lorafit |make |pip install \"lorafit\[|\. \.venv/|python (docs|bench|examples)/"
        r"|\w+: |\.\.\. "
    )
    strange = [line for line in LINES if not re.match(known, line.text)]
    assert strange == []


@pytest.fixture(scope="module")
def offline() -> ModuleType:
    return load_script("offline")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_of_a_page_run(
    page: str,
    offline: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_lorafit: Callable[..., Any],
    quiet_libraries: None,
) -> None:
    prepare_folder(offline, tmp_path, monkeypatch, run_lorafit)
    commands = [line.text for line in COMMANDS if line.page == page]
    assert commands
    for text in commands:
        if any(re.search(pattern, text) for pattern in NOT_RUN) or " ..." in text:
            continue
        words = shlex.split(text)[1:]
        if words[:2] == ["data", "inspect"]:
            # It takes its model from the flag alone.
            words += ["--model", "model"]
        with pytest.MonkeyPatch.context() as patch:
            for name, value in offline.environment(text, tmp_path / "model", _cache()).items():
                patch.setenv(name, value)
            done = run_lorafit(*words)
        assert done.code in ALLOWED.get(words[0], (0,)), f"{text}\n{done.err}"


def _cache() -> Path:
    return Path(os.environ["LORAFIT_CACHE_DIR"])


def prepare_folder(
    offline: ModuleType,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_lorafit: Callable[..., Any],
) -> None:
    """Put there what the documents take for given: data, settings, and two finished runs."""
    monkeypatch.chdir(folder)
    model = offline.make_model(folder / "model")
    offline.make_data(folder)
    (folder / "my.yaml").write_text("preset: balanced\nlearning_rate: 1.0e-4\n", encoding="utf-8")
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("first", "second"):
        text = f"lorafit train --preset balanced --data my.jsonl --output-dir outputs/{name}"
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in offline.environment(text, model, _cache()).items():
                patch.setenv(variable, value)
            assert run_lorafit(*shlex.split(text)[1:]).code == 0
