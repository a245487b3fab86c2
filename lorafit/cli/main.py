"""The command line: finds the command, imports only what it needs, maps errors to exit codes."""

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import typer

from lorafit import __version__


class Command(NamedTuple):
    """One command: the module `lorafit.cli.<module>` holds `command` (or `app`, a group)."""

    name: str
    module: str
    help: str
    panel: str


COMMANDS = (
    Command("demo", "demo", "See it work: train a tiny model here, now, offline.", "Start"),
    Command("doctor", "doctor", "Check this machine, and say how to fix what is wrong.", "Start"),
    Command(
        "estimate-memory", "estimate_memory", "Say what a run takes, before it starts.", "Work"
    ),
    Command(
        "schedule", "schedule", "Show the learning rate of a run, and what changes do.", "Work"
    ),
    Command("train", "train", "Train a LoRA adapter from a preset.", "Work"),
    Command("evaluate", "evaluate", "Measure a model or adapter on labelled data.", "Work"),
    Command("generate", "generate", "Write text with a model or adapter.", "Work"),
    Command("chat", "chat", "Talk to a model, with its adapter on or off.", "Work"),
    Command("export", "export", "Merge an adapter, and take it to the hub or Ollama.", "Work"),
    Command("report", "report", "Show a run, or compare several, as one HTML file.", "Look"),
    Command("serve", "serve", "Watch a run in the browser while it goes on.", "Look"),
    Command("tensorboard", "tensorboard", "Open the curves of runs in TensorBoard.", "Look"),
    Command("checkpoints", "checkpoints", "List, verify, prune and compare checkpoints.", "Look"),
    Command("data", "data", "Look at training data before training on it.", "Look"),
    Command("presets", "presets", "List, show and compare presets.", "Look"),
    Command("config", "config", "Show where every setting comes from; validate a file.", "Look"),
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# Options that mean something when given more than once.
REPEATABLE = frozenset({"--allow-mismatch", "--check", "--prompt"})

EPILOG = "First time? `lorafit demo`, then `lorafit train --preset balanced --data FILE --dry-run`"


def build_app(invoked: str | None = None) -> typer.Typer:
    """Return the Typer app; only the `invoked` command is imported, all of them for None."""
    app = typer.Typer(
        name="lorafit",
        help="Fine-tune Phi-2 and other language models with LoRA on the hardware you have.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=True,
    )
    app.callback()(_global_options)
    for entry in COMMANDS:
        wanted = invoked is None or entry.name == invoked
        _register(app, entry) if wanted else _register_stub(app, entry)
    return app


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"lorafit {__version__}")
        raise typer.Exit


def _global_options(
    version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=_show_version
    ),
) -> None:
    """Options before the command; `--version` is done by its callback."""


def _register(app: typer.Typer, entry: Command) -> None:
    from lorafit.cli.foreign_flags import HintingCommand
    from lorafit.cli.help_text import help_of
    from lorafit.model.libraries import quick_imports

    with quick_imports():
        module = importlib.import_module(f"lorafit.cli.{entry.module}")
    if hasattr(module, "app"):
        for command in module.app.registered_commands:
            command.help = command.help or help_of(command.callback)
        app.add_typer(module.app, name=entry.name, help=entry.help, rich_help_panel=entry.panel)
    else:
        app.command(
            entry.name,
            help=help_of(module.command),
            short_help=entry.help,
            rich_help_panel=entry.panel,
            no_args_is_help=False,
            cls=HintingCommand,
        )(module.command)


def _register_stub(app: typer.Typer, entry: Command) -> None:
    # Listed in --help and in suggestions, never run: the invoked command is always registered.
    app.command(entry.name, short_help=entry.help, rich_help_panel=entry.panel)(lambda: None)


def normalize_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--learning_rate` spelled `--learning-rate`.

    Raises:
        UsageError: an option is given twice; which of the two was meant cannot be known.
    """
    from lorafit.config.aliases import ALIASES
    from lorafit.errors import UsageError

    seen: set[str] = set()
    normalized = []
    options_ended = False
    for argument in arguments:
        options_ended = options_ended or argument == "--"
        if options_ended or not argument.startswith("--"):
            normalized.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-")
        setting = name[2:].removeprefix("no-").replace("-", "_")
        setting = ALIASES.get(setting, setting)
        if setting in seen and name not in REPEATABLE:
            raise UsageError(
                f"{setting} is given twice, and which value was meant cannot be known",
                hint=f"keep one of the two, such as this {name}",
            )
        seen.add(setting)
        normalized.append(name + equals + value)
    return normalized


def main(arguments: Sequence[str] | None = None) -> None:
    """Run lorafit and exit with a code of `lorafit.errors.ExitCode`."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    completing = "_LORAFIT_COMPLETE" in os.environ
    invoked = next((word for word in argv if not word.startswith("-")), "")
    if not argv or completing:
        build_app(None if completing else "")(argv, prog_name="lorafit")
        return
    sys.exit(_run(argv, invoked))


def _run(argv: list[str], invoked: str) -> int:
    from lorafit.cli import console
    from lorafit.cli.arguments import check_arguments
    from lorafit.errors import ExitCode, LorafitError, StorageError

    console.prepare_streams()
    try:
        check_arguments(argv)
        build_app(invoked)(normalize_arguments(argv), prog_name="lorafit", obj=argv)
    except LorafitError as failure:
        console.error(failure)
        return int(failure.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except SystemExit as ended:
        # The reader of our output left (`| head`): rich and click end with 1, shells expect 141.
        if isinstance(ended.__context__, BrokenPipeError):
            return 141
        if not ended.code:
            _say_next(argv)
        raise
    except BrokenPipeError:
        # Python would flush once more at its end, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as problem:
        if problem.errno not in _FULL:
            return _report_bug(problem)
        where = str(problem.filename or "the output")
        console.error(StorageError(f"cannot be written: {problem.strerror}", where=where))
        return int(ExitCode.STORAGE)
    except Exception as bug:
        return _report_bug(bug)
    return int(ExitCode.OK)


def _say_next(argv: list[str]) -> None:
    from lorafit.cli import console
    from lorafit.cli.next_steps import next_step

    if (step := next_step(argv)) is not None:
        console.say(f"next: {step}")


def _report_bug(bug: Exception) -> int:
    """Write the traceback to a file and tell the person where it lies."""
    import tempfile
    import traceback

    from lorafit.cli import console
    from lorafit.errors import ExitCode, LorafitError
    from lorafit.text import hide_secrets

    with tempfile.NamedTemporaryFile(
        "w", prefix="lorafit-crash-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"lorafit {__version__}\n")
        log.write(hide_secrets("".join(traceback.format_exception(bug))))
    console.error(
        LorafitError(
            f"a bug in lorafit: {type(bug).__name__}: {bug}",
            hint=f"the details are in {log.name}; please report them",
        )
    )
    if os.environ.get("LORAFIT_TRACEBACK"):
        console.say(hide_secrets("".join(traceback.format_exception(bug))))
    return int(ExitCode.BUG)
