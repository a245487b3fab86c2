"""Write docs/reference/ from the code: settings, commands, exit codes, checks, presets, documents.

python docs/make_reference.py [--check] [--only PAGE]

The page of JSON documents takes about a minute: it runs every command that has `--json` on a tiny
model and notes what was printed. The others take seconds.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from lorafit.cli.main import build_app
from lorafit.config.aliases import ALIASES
from lorafit.config.fields import field_rule, show_value
from lorafit.config.presets import DEFAULT_ROW, list_presets
from lorafit.config.schema import (
    SETTING_GROUPS,
    Settings,
    is_preset_setting,
    recommended_range,
    setting_group,
)
from lorafit.doctor.check import CHECKS, GROUPS
from lorafit.errors import ExitCode, LorafitError

FOLDER = Path(__file__).parent / "reference"
_HEAD = "<!-- written by docs/make_reference.py: change the code instead -->"


def settings_page() -> str:
    """Return every setting: type and range, default, recommended range, aliases, meaning."""
    lines = [
        "# Settings",
        "",
        "Every setting has one name. It is a flag (`--learning-rate` or `--learning_rate`), a key "
        "of a `--config` file, a variable (`LORAFIT_LEARNING_RATE`) and a `key=value` after the "
        "options. `lorafit config show` prints the values of a run and where each comes from.",
        "",
        "Outside of its allowed values a setting is refused. Outside of the recommended ones it "
        "is accepted with a warning that says why.",
    ]
    for group in SETTING_GROUPS:
        lines += ["", f"## {group}"]
        for name, info in Settings.model_fields.items():
            if setting_group(name) == group:
                lines += ["", *_setting_lines(name, str(info.description), info.default)]
    return _page(lines)


def _setting_lines(name: str, description: str, default: object) -> list[str]:
    rule = field_rule(name)
    allowed = rule.describe() + (", or none" if rule.optional else "")
    rows = [("allowed", allowed), ("default", f"`{show_value(default)}`")]
    if (wanted := recommended_range(name)) is not None:
        below = f"; below: {wanted.below}" if wanted.below else ""
        span = f"{show_value(wanted.low)} to {show_value(wanted.high)}"
        rows.append(("recommended", f"{span}{below}; above: {wanted.above}"))
    if aliases := [f"`{alias}`" for alias, target in ALIASES.items() if target == name]:
        rows.append(("also accepted as", ", ".join(aliases)))
    if not is_preset_setting(name):
        rows.append(("in a preset", "no: it belongs to a machine or a person"))
    bullets = [f"- {label}: {text}" for label, text in rows]
    return [f"### `{name}`", "", _sentence(description), "", *bullets]


def cli_page() -> str:
    """Return every command with its help, arguments and options."""
    app = typer.main.get_command(build_app(None))
    flags = {"--" + name.replace("_", "-") for name in Settings.model_fields}
    lines = [
        "# Commands",
        "",
        "Commands that take a run's settings have a flag for [every setting](SETTINGS.md); these "
        "flags are not repeated here. Data goes to stdout, words for people to stderr.",
    ]
    for name, command in _walk(app, "lorafit"):
        lines += ["", f"## `{name}`", "", *_help_lines(command.help or "")]
        shared = _takes_settings(command, flags)
        rows = [
            f"| `{_spelling(parameter)}` | {_help_of(parameter)} |"
            for parameter in command.params
            if not (shared and parameter.opts[0] in flags)
        ]
        if rows:
            lines += ["", "| | |", "|---|---|", *rows]
        if shared:
            lines += ["", "And a flag for every [setting](SETTINGS.md)."]
    return _page(lines)


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, child in getattr(command, "commands", {}).items():
        if hasattr(child, "commands"):
            yield from _walk(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


def _takes_settings(command: Any, flags: set[str]) -> bool:
    return len([p for p in command.params if p.opts and p.opts[0] in flags]) > len(flags) / 2


def _spelling(parameter: Any) -> str:
    metavar = parameter.metavar or ""
    if not parameter.opts or not parameter.opts[0].startswith("-"):
        return _cell(metavar or str(parameter.name).upper())
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    if not metavar and not getattr(parameter, "is_flag", False):
        metavar = str(parameter.name).rpartition("_")[2].upper()
    return _cell(f"{names} {metavar}".strip())


def _help_of(parameter: Any) -> str:
    words = Text.from_markup(parameter.help or "").plain
    default = parameter.default
    has_default = isinstance(default, str | int | float) and not isinstance(default, bool)
    if has_default and default != "" and parameter.opts[0].startswith("-"):
        words += f" Default: {default}."
    return _cell(words)


def _help_lines(text: str) -> list[str]:
    """Return help text as Markdown: lines that are indented are commands."""
    lines: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if line.startswith("  ") and stripped:
            lines += [f"    {stripped}"]
        elif stripped.startswith("Example: "):
            lines += ["Example:", "", f"    {stripped.removeprefix('Example: ')}"]
        elif stripped.startswith("Examples:"):
            lines += ["Examples:", ""]
        elif stripped or (lines and not lines[-1].startswith("    ")):
            lines += [_cell(stripped, escape_bars=False)]
    return lines


def exit_codes_page() -> str:
    """Return what each exit code means, with the errors that end with it."""
    meanings = {
        ExitCode.OK: "done",
        ExitCode.BUG: "a bug in lorafit; for `lorafit doctor`: something is wrong",
        ExitCode.INTERRUPTED: "interrupted by Ctrl-C with nothing to save",
        ExitCode.TERMINATED: "terminated with nothing to save",
    }
    for error in _subclasses(LorafitError):
        meanings.setdefault(error.exit_code, _first_line(error))
    lines = ["# Exit codes", "", "Scripts may rely on them.", "", "| code | when |", "|---|---|"]
    lines += [f"| {int(code)} | {_sentence(meanings[code])} |" for code in ExitCode]
    lines += ["", "## Errors", "", "| error | code | when |", "|---|---|---|"]
    lines += [
        f"| `{error.__name__}` | {int(error.exit_code)} | {_first_line(error)} |"
        for error in _subclasses(LorafitError)
    ]
    return _page(lines)


def _subclasses(base: type[LorafitError]) -> Iterator[type[LorafitError]]:
    for child in base.__subclasses__():
        if child.__module__ == "lorafit.errors":
            yield child
            yield from _subclasses(child)


def doctor_page() -> str:
    """Return every check of `lorafit doctor` and what it protects."""
    import lorafit.doctor.checks  # noqa: F401  # registers the checks

    lines = [
        "# Checks of `lorafit doctor`",
        "",
        "`lorafit doctor --check ID` runs one of them. A check that cannot be made is skipped with "
        "the reason; skipped is not passed.",
    ]
    for group in GROUPS:
        rows = [
            f"| `{found.id}` | {_cell(found.title)} | {_cell(found.affects)} |"
            for found in CHECKS.values()
            if found.group == group
        ]
        if rows:
            head = ["| check | looks at | when it is not right |", "|---|---|---|"]
            lines += ["", f"## {group}", "", *head, *rows]
    return _page(lines)


def presets_page() -> str:
    """Return every shipped preset with its settings and its rows by device."""
    lines = ["# Presets", "", "`lorafit presets show NAME` prints one with the reasons of its "
             "values; `lorafit presets diff A B` compares two."]  # fmt: skip
    for preset in list_presets():
        lines += ["", f"## `{preset.name}`", "", _sentence(preset.description), ""]
        lines += ["| on | settings |", "|---|---|"]
        lines += [f"| every device | {_values(preset.settings)} |"]
        for key, row in preset.hardware.items():
            on = "any other device" if key == DEFAULT_ROW else f"`{key}`"
            lines += [f"| {on} | {_values(row)} |"]
    return _page(lines)


def _values(values: dict[str, Any]) -> str:
    return _cell(", ".join(f"{name} {show_value(value)}" for name, value in values.items()))


def documents_page() -> str:
    """Return the keys of every JSON document that a command prints, as it printed them."""
    from json_documents import document_lines

    with tempfile.TemporaryDirectory() as folder:
        return _page(document_lines(Path(folder)))


PAGES: dict[str, Callable[[], str]] = {
    "SETTINGS.md": settings_page,
    "CLI.md": cli_page,
    "EXIT-CODES.md": exit_codes_page,
    "DOCTOR.md": doctor_page,
    "PRESETS.md": presets_page,
    "JSON.md": documents_page,
}
SLOW_PAGES = ("JSON.md",)


def _page(lines: list[str]) -> str:
    title, *rest = lines
    return "\n".join([title, "", _HEAD, *rest]).rstrip() + "\n"


def _cell(text: str, escape_bars: bool = True) -> str:
    """Return text for a table cell or a paragraph: what HTML would take for a tag is escaped."""
    text = " ".join(text.split()).replace("<", "&lt;")
    return text.replace("|", "\\|") if escape_bars else text


def _sentence(text: str) -> str:
    text = _cell(text, escape_bars=False)
    first = text.partition(" ")[0]
    capital = first.isalpha() and first.islower()
    return (text[:1].upper() + text[1:] if capital else text).rstrip(".") + "."


def _first_line(item: type) -> str:
    return _cell((item.__doc__ or "").strip().splitlines()[0])


def main() -> None:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description="Write docs/reference/ from the code.")
    parser.add_argument("--check", action="store_true", help="compare only; 1 when stale")
    parser.add_argument("--only", choices=tuple(PAGES), help="one page; default: all")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in [arguments.only] if arguments.only else PAGES:
        path, made = FOLDER / name, PAGES[name]()
        if not arguments.check:
            path.write_text(made, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != made:
            sys.exit(f"{path} is stale: run {Path(__file__).name}")


if __name__ == "__main__":
    main()
