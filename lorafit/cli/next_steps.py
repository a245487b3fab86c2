"""What to type after a command that does not say so itself, by the words that name it."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from lorafit.text import shell_word

NEXT_STEPS = {
    "doctor": "lorafit demo, or lorafit train --preset balanced --data FILE --dry-run",
    "estimate-memory": "lorafit train with the same flags, --data FILE and --dry-run",
    "schedule": "lorafit train with the same flags and --dry-run",
    "evaluate": "lorafit chat RUN to try it by hand, lorafit export RUN to take it elsewhere",
    "generate": "lorafit evaluate --adapter DIR --data FILE measures it, lorafit chat RUN talks",
    "chat": "lorafit export RUN merges the adapter, lorafit evaluate measures it",
    "tensorboard": "lorafit report RUN draws the curves into one file, for keeping",
    "checkpoints list": "lorafit checkpoints verify RUN, or lorafit train --resume FOLDER",
    "checkpoints verify": "lorafit train with the flags of the run goes on from it",
    "checkpoints prune": "lorafit checkpoints list RUN",
    "checkpoints diff": "lorafit evaluate --adapter FOLDER --data FILE",
    "data inspect": "lorafit train --preset balanced --dry-run --data FILE",
    "presets show": "lorafit train --preset NAME --data FILE --dry-run",
    "presets diff": "lorafit estimate-memory --compare A,B",
    "config show": "lorafit train with the same flags, --data FILE and --dry-run",
    "config validate": "lorafit train --config FILE --dry-run",
    "config aliases": "lorafit config show",
    "config groups": "lorafit config show training=aggressive",
}
"""Only where a command succeeds, and not where it printed JSON or help."""

_SWITCHES = frozenset({"--train-on-prompt", "--no-train-on-prompt"})
_SILENT = frozenset({"--json", "--help", "--version", "--install-completion", "--show-completion"})


def next_step(arguments: Sequence[str]) -> str | None:
    """Return what to type after a command that succeeded, if it is for people and has something."""
    if _SILENT & set(arguments):
        return None
    if arguments[:1] == ["train"] and "--dry-run" in arguments:
        is_elsewhere = any(word.partition("=")[0] == "--hardware" for word in arguments)
        place = "on that machine, the same command without --hardware and" if is_elsewhere else ""
        return f"{place or 'the same command without'} --dry-run"
    if list(arguments[:2]) == ["data", "inspect"]:
        return NEXT_STEPS["data inspect"].replace("--data FILE", _data_flags(arguments[2:]))
    words = [word for word in arguments if not word.startswith("-")]
    for count in (2, 1):
        if (step := NEXT_STEPS.get(" ".join(words[:count]))) is not None:
            return _with_names(step, arguments, arguments[count:])
    return None


def _with_names(step: str, arguments: Sequence[str], after: Sequence[str]) -> str:
    """Return the step with what the command was about, in place of the words that stand for it."""
    named = list(itertools.takewhile(lambda word: word[:1] != "-" and "=" not in word, after))
    adapter = _value_of("--adapter", arguments)
    if adapter is not None:
        step = step.replace("--adapter DIR", f"--adapter {shell_word(adapter)}")
        run = Path(adapter).parent
        named = [str(run)] if (run / "run.json").is_file() else []
    if not named:
        return step
    names = [shell_word(name) for name in named]
    for stand_in in (" RUN", " NAME", " --config FILE", " A,B"):
        before = stand_in.rpartition(" ")[0]
        step = step.replace(stand_in, f"{before} {(',' if 'A,B' in stand_in else ' ').join(names)}")
    return step


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    for word, after in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else after
    return None


def _data_flags(arguments: Sequence[str]) -> str:
    """Return the flags of `train` for what was inspected: the rows, and all that reads them."""
    flags, rows = [], "FILE"
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            rows = word
        elif name == "--show-mask":
            value = value or next(words, "")
        elif name in _SWITCHES:
            flags.append(name)
        else:
            flags += [name, shell_word(value if equals else next(words, ""))]
    return " ".join(["--data", shell_word(rows), *flags])
