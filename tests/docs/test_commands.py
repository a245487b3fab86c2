"""Commands that stand in the documents: all of them parse, and all that can run offline run."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from desk import Desk, words_of
from pages import PAGES, Line, commands_of, inline_commands_of
from tiny import ROOT, Outcome, child_environment

from lorafit.cli.main import build_app, normalize_arguments

LINES = [line for path in PAGES for line in commands_of(path)]
COMMANDS = [line for line in LINES if re.match(r"(echo .* \| )?lorafit ", line.text)]
# Run page by page, so that a command finds what those before it left.
RUN_PAGES = list(dict.fromkeys(line.page for line in COMMANDS))
# What is not run with its page, and why.
NOT_RUN = {
    r"lorafit demo": "takes minutes; tests/demo runs it",
    r"lorafit (serve|tensorboard) ": "goes on until Ctrl-C: a test of its own below",
    r" --push ": "sends files away; tests/export pushes to a server of its own",
    r" --gguf ": "needs llama.cpp; tests/export has a stand-in for its converter",
}
SERVERS = sorted(
    {line.text for line in COMMANDS if re.match(r"lorafit (serve|tensorboard) ", line.text)}
)
# Within sentences and tables a command may be cut short or name a kind of thing (`diff A B`);
# those that begin like this are whole, and change nothing.
READS = r"lorafit (presets (list|show \S+|diff \w+ \w+ -)|config (show|groups|aliases)|schedule --)"
PARTS = r"\.\.\.|\||\b[A-Z]+\b"
INLINE = {line.text for path in PAGES for line in inline_commands_of(path)}
READERS = sorted(c for c in INLINE if re.match(READS, c) and not re.search(PARTS, c))
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
    words, _ = words_of(line.text)
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
        r"|echo \".*\" \| lorafit |\w+: |\.\.\. "
    )
    strange = [line for line in LINES if not re.match(known, line.text)]
    assert strange == []


def test_what_make_is_told_to_make_is_there() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    told = {line.text.split()[1] for line in LINES if line.text.startswith("make ")}
    assert {"demo", "test"} <= told <= set(targets)


def test_scripts_are_there_and_have_the_options_that_are_shown() -> None:
    scripts = [line.text.split() for line in LINES if line.text.startswith("python ")]
    assert scripts
    for _, script, *rest in scripts:
        path = ROOT / script
        source = path.read_text("utf-8")
        # Scripts of docs/ share their options with each other.
        imported = [path.with_name(f"{m}.py") for m in re.findall(r"^from (\w+) ", source, re.M)]
        source += "".join(other.read_text("utf-8") for other in imported if other.exists())
        for option in re.findall(r"--[\w-]+", " ".join(rest)):
            assert f'"{option}"' in source, f"{script} {option}"


# -- Run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared() -> dict[str, Path]:
    return {}


@pytest.fixture
def desk(
    prepared: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    run_lorafit: Callable[..., Outcome],
    quiet_libraries: None,
) -> Desk:
    """A folder of its own, copied from one that is prepared once."""
    if "folder" not in prepared:
        first = Desk(tmp_path_factory.mktemp("prepared"), run_lorafit)
        first.prepare()
        prepared["folder"] = first.folder
    return Desk(shutil.copytree(prepared["folder"], tmp_path / "desk", symlinks=True), run_lorafit)


def make_room(desk: Desk, text: str) -> None:
    """Take away the finished run that a command of the page itself trains."""
    for run in re.findall(r"lorafit train .*--output-dir (\S+)", text):
        shutil.rmtree(desk.folder / run, ignore_errors=True)


@pytest.mark.parametrize("page", RUN_PAGES)
def test_commands_of_a_page_run(page: str, desk: Desk) -> None:
    commands = [line.text for line in COMMANDS if line.page == page]
    for text in commands:
        make_room(desk, text)
        if any(re.search(pattern, text) for pattern in NOT_RUN) or " ..." in text:
            continue
        done = desk.type(text)
        assert done.code in ALLOWED.get(text.split()[1], (0,)), f"{text}\n{done.err}"


def test_commands_of_the_page_of_documents_print_one_each(desk: Desk) -> None:
    page = inline_commands_of(ROOT / "docs" / "reference" / "JSON.md")
    commands = [line.text for line in page if line.text.endswith("--json")]
    assert len(commands) > 20
    for text in commands:
        make_room(desk, text)
        done = desk.type(text)
        assert done.code in ALLOWED.get(text.split()[1], (0,)), f"{text}\n{done.err}"
        assert isinstance(json.loads(done.out), dict), text


@pytest.mark.parametrize("text", READERS)
def test_a_command_in_a_sentence_runs(text: str, desk: Desk) -> None:
    done = desk.type(text)
    assert done.code == 0, done.err
    assert done.out + done.err


# A process whose parent runs in the background of a shell is deaf to Ctrl-C from its start.
_HEARS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lorafit.cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def start(desk: Desk) -> Iterator[Callable[[str], "subprocess.Popen[str]"]]:
    """Return a function that starts a command of a document in a process of its own."""
    started = []

    def begin(text: str) -> "subprocess.Popen[str]":
        words, _ = words_of(text)
        process = subprocess.Popen(
            [sys.executable, "-c", _HEARS_CTRL_C, *words],
            cwd=desk.folder,
            env=child_environment(**desk.environment(text), PYTHONUNBUFFERED="1"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("text", SERVERS)
def test_a_server_answers_and_ends_on_ctrl_c(
    text: str, start: Callable[[str], "subprocess.Popen[str]"]
) -> None:
    # A port that is free, where the document leaves it at the usual one.
    process = start(text if "--port" in text else f"{text} --port 0")
    assert process.stdout is not None
    said = iter(process.stdout.readline, "")
    address = next(found[0] for line in said if (found := re.search(r"http://\S+", line)))
    with urllib.request.urlopen(address, timeout=600) as answer:
        assert answer.status == 200
    # A terminal's Ctrl-C reaches the command and what it started.
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 0
