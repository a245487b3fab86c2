"""What a person meets at the prompt: completion, help with examples, and what to type next."""

import os
import subprocess
import sys

import pytest
import typer.main
from made_runs import write_run
from tiny import child_environment

from lorafit.cli.completion import complete_overrides, complete_runs, setting_completer
from lorafit.cli.help_text import help_of
from lorafit.cli.main import COMMANDS, build_app
from lorafit.cli.next_steps import NEXT_STEPS, next_step


def leaves():
    """Yield the words and the click command of every command that does something."""
    group = typer.main.get_command(build_app())
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            for inner, leaf in command.commands.items():
                yield f"{name} {inner}", leaf
        else:
            yield name, command


LEAVES = dict(leaves())


def complete(*words, shell="bash", cwd=None):
    """Return what a shell would offer for the last word."""
    environment = child_environment(
        _LORAFIT_COMPLETE=f"complete_{shell}",
        COMP_WORDS=" ".join(("lorafit", *words)),
        COMP_CWORD=str(len(words)),
        _TYPER_COMPLETE_ARGS=" ".join(("lorafit", *words)),
    )
    code = (
        "import sys\nfrom lorafit.cli.main import main\n"
        "try:\n    main([])\nexcept SystemExit as ended:\n    code = ended.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("tr",), ["train"]),
        (("presets", "sh"), ["show"]),
        (("train", "--preset", "bal"), ["balanced"]),
        (("presets", "show", "bal"), ["balanced"]),
        (("estimate-memory", "--hardware", "a100"), ["a100-40gb", "a100-80gb"]),
        (("train", "--quantization", "n"), ["none", "nf4"]),
        (("train", "kernels=s"), ["kernels=stock"]),
    ],
)
def test_tab_completes_without_importing_torch(words, expected):
    assert complete(*words) == expected


def test_zsh_shows_what_a_preset_is_for():
    (shown,) = [
        line for line in complete("train", "--preset", "bala", shell="zsh") if "bal" in line
    ]
    assert '"balanced":"' in shown


def test_runs_are_completed_below_the_folder_that_is_typed(tmp_path, monkeypatch):
    write_run(tmp_path / "outputs" / "first", num_steps=0)
    (tmp_path / "outputs" / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [word for word, _ in complete_runs("")] == ["outputs/first"]
    assert [word for word, _ in complete_runs("outputs/f")] == ["outputs/first"]
    assert complete_runs("outputs/x") == []


def test_overrides_complete_names_then_values():
    assert [word for word, _ in complete_overrides("lora_a")] == ["lora_alpha="]
    assert complete_overrides("use_dora=t") == [("use_dora=true", "")]
    assert complete_overrides("nonsense=") == []
    assert complete_overrides("learning_rate=") == []


def test_settings_of_free_text_complete_nothing():
    assert setting_completer("data") is None
    assert [word for word, _ in setting_completer("optim")("paged")] != []


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_an_example_of_itself(name):
    assert f"lorafit {name}" in LEAVES[name].help.split("Example", 1)[-1], name
    assert "Example" in LEAVES[name].help


def test_no_next_step_is_of_a_command_that_is_gone():
    assert NEXT_STEPS.keys() <= LEAVES.keys()


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_says_what_to_type_next(name):
    """Either it ends with it itself, which its own tests show, or the table has it."""
    says_itself = {"demo", "train", "export", "report", "serve", "presets list",
                   "presets recommend", "config convert"}  # fmt: skip
    assert (name in NEXT_STEPS) != (name in says_itself)


def test_what_comes_next_is_said_to_people_only(run_lorafit):
    assert run_lorafit("config", "show").err.endswith("--data FILE and --dry-run\n")
    assert "next:" not in run_lorafit("config", "show", "--json").err
    assert "next:" not in run_lorafit("config", "show", "--help").err
    assert "next:" not in run_lorafit("config", "show", "lora_r=0").err
    assert next_step(["train", "--dry-run"]) == "the same command without --dry-run"
    assert next_step(["train"]) is None


def test_paragraphs_flow_and_examples_keep_their_lines():
    def command():
        """Do a thing that takes
        two lines.

        Example:
          lorafit thing
        """

    assert help_of(command) == "Do a thing that takes two lines.\n\nExample:\n  lorafit thing"


def test_help_is_grouped_in_panels(run_lorafit):
    shown = run_lorafit("--help").out
    assert shown.index(" Start ") < shown.index(" Work ") < shown.index(" Look ")
    for command in COMMANDS:
        assert f" {command.name} " in shown


@pytest.mark.parametrize("width", ["40", "80"])
def test_help_is_readable_where_it_is_narrow_and_without_colour(width):
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "export", "--help"],
        capture_output=True, text=True, env=child_environment(COLUMNS=width, NO_COLOR="1"),
    )  # fmt: skip
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.split(os.linesep))) <= int(width)
