"""The command line as a whole: quick, small, and never a traceback."""

import json
import os
import subprocess
import sys

import pytest
from tiny import child_environment, start_lorafit

from lorafit import __version__
from lorafit.cli.main import COMMANDS

NAMES = [command.name for command in COMMANDS]


def run_process(*arguments, **options):
    process = start_lorafit(*arguments, **options)
    out, err = process.communicate(timeout=600)
    assert "Traceback" not in out + err
    return process.returncode, out, err


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from lorafit.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'peft', 'datasets', 'numpy', 'yaml'}\n"
        "sys.exit(f'imported: {heavy & sys.modules.keys()}' if heavy & sys.modules.keys() else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f" {command.name} " in result.stdout
        assert command.help in " ".join(result.stdout.split())


@pytest.mark.parametrize("arguments", [["train", "--lora-r", "0"], ["train", "--preset", "nope"],
                                       ["train"], ["train", "--help"]])  # fmt: skip
def test_wrong_arguments_are_found_without_importing_torch(arguments):
    code = (
        "import sys\n"
        "from lorafit.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert result.returncode == 0, result.stderr


def test_version_and_no_arguments():
    assert run_process("--version") == (0, f"lorafit {__version__}\n", "")
    code, out, err = run_process()
    assert code in (0, 2)
    assert "Usage: " in out + err


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(run_lorafit, name):
    outcome = run_lorafit(name, "--help")
    assert outcome.code == 0
    assert f"Usage: lorafit {name}" in outcome.out


@pytest.mark.row("B1")
@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["evalute", "--data", "x"], "Did you mean 'evaluate'?"),
        (["train", "--lerning-rate", "3"], "--learning-rate"),
        (["generate", "--promt", "x"], "--prompt"),
        (["presets", "lst"], "Did you mean 'list'?"),
        (["nothing-like-it"], "No such command 'nothing-like-it'"),
        (["--vresion"], "--version"),
    ],
)
def test_b1_a_typing_error_is_answered_with_the_nearest_name(run_lorafit, arguments, suggestion):
    outcome = run_lorafit(*arguments)
    assert outcome.code == 2
    assert suggestion in outcome.err
    assert outcome.out == ""


@pytest.mark.row("B17")
def test_b17_no_colour_narrow_and_plain_ascii_say_the_same(tmp_path):
    wide = run_process("presets", "list", COLUMNS="160")
    narrow = run_process("presets", "list", COLUMNS="20", NO_COLOR="1")
    ascii_only = run_process("presets", "list", LC_ALL="C", PYTHONIOENCODING="ascii")
    for code, out, err in (wide, narrow, ascii_only):
        assert code == 0
        assert "\x1b" not in out + err
        assert "balanced" in out
    assert ascii_only[1].isascii()


@pytest.mark.row("B17")
def test_b17_an_error_of_plain_ascii_keeps_its_facts():
    code, _, err = run_process(
        "train", "--data", "naïve-\x07.jsonl", LC_ALL="C", PYTHONIOENCODING="ascii", COLUMNS="20"
    )
    assert code == 3
    assert err.isascii()
    assert "\x07" not in err
    assert ".jsonl" in err


@pytest.mark.row("F42")
def test_f42_a_reader_that_leaves_is_no_error_to_show():
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "lorafit", "config", "show", "--json"],
        stdout=writer, stderr=subprocess.PIPE, text=True, env=child_environment(),
    )  # fmt: skip
    os.close(writer)
    assert process.returncode == 141
    assert "Traceback" not in process.stderr
    assert "rror" not in process.stderr


@pytest.mark.row("F42")
def test_f42_a_full_stdout_is_reported_without_a_traceback():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "lorafit", "config", "show", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=child_environment(),
        )  # fmt: skip
    assert process.returncode == 7
    assert "Traceback" not in process.stderr
    assert "No space left on device" in process.stderr


def test_a_bug_is_reported_with_a_log_and_no_traceback(run_lorafit, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("lorafit.cli.settings_flags.RunChoices.resolve", lambda *_: {}["x"])
    outcome = run_lorafit("train", "--data", "x")
    assert outcome.code == 1
    assert "error: a bug in lorafit: KeyError: 'x'" in outcome.err
    (log,) = tmp_path.glob("lorafit-crash-*.log")
    assert f"the details are in {log}" in outcome.err
    assert f"lorafit {__version__}" in log.read_text()


def test_json_errors_leave_stdout_empty(run_lorafit):
    outcome = run_lorafit("train", "--json", "--data", "missing.jsonl", "--lora-r", "0")
    assert outcome.code == 2
    assert outcome.out == ""
    assert json.dumps(outcome.err)
