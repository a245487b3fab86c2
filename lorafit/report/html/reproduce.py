"""The command that repeats a run, rebuilt from the settings that it really used."""

import shlex
from collections.abc import Mapping
from typing import Any

_RUN_ONLY = frozenset({"output_dir"})


def reproduce_command(settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return `lorafit train` with every setting that is not the default, as shell words.

    Presets are spelled out, so that the command means the same when a preset has changed.
    """
    words = ["lorafit", "train"]
    for name, entry in settings.items():
        value = entry.get("value")
        if entry.get("origin") == "default" or name in _RUN_ONLY or value is None:
            continue
        words += _flag(name.replace("_", "-"), value)
    return [*words, "--output-dir", "outputs/again"]


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}", ",".join(map(str, value)) or "none"]
    # repr keeps every digit of a float, and an integral one is what an integer setting takes.
    text = repr(value) if isinstance(value, float) else str(value)
    # Joined, a value that begins with a dash is not taken for a flag.
    return [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]


def shell_lines(words: list[str]) -> str:
    """Return the words as one command over several lines, a flag a line."""
    lines = [" ".join(words[:2])]
    rest = words[2:]
    while rest:
        takes_value = len(rest) > 1 and not rest[1].startswith("--")
        flag, rest = rest[: 1 + takes_value], rest[1 + takes_value :]
        lines.append("  " + " ".join(map(shlex.quote, flag)))
    return " \\\n".join(lines)


def install_command(versions: Mapping[str, Any]) -> str:
    """Return the pip command for the versions that the run had."""
    pinned = [
        f"{name}=={str(version).partition('+')[0]}"
        for name, version in versions.items()
        if name != "python"
    ]
    return shlex.join(["pip", "install", *pinned])
