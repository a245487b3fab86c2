"""What the shell offers on TAB: presets, devices, values of settings, runs. Imports no torch.

Each function takes the word so far and returns what could stand there, with help where a shell
shows it.
"""

from collections.abc import Callable
from pathlib import Path

Completion = tuple[str, str]
Completer = Callable[[str], list[Completion]]

_RUN_PATTERNS = ("*/run.json", "*/*/run.json")
_MOST_RUNS = 50


def complete_presets(incomplete: str) -> list[Completion]:
    """Return the shipped presets."""
    from lorafit.config.presets import list_presets

    return _starting(incomplete, [(one.name, one.description) for one in list_presets()])


def complete_hardware(incomplete: str) -> list[Completion]:
    """Return the devices of the catalog."""
    from lorafit.hardware.catalog import CATALOG

    known = [(key, entry.name) for key, entry in CATALOG.items()]
    return _starting(incomplete, [("auto", "the device of this machine"), *known])


def complete_runs(incomplete: str) -> list[Completion]:
    """Return run folders below the current folder, or below the one that is typed."""
    typed = Path(incomplete)
    start = typed if incomplete.endswith("/") else typed.parent
    found = [path for pattern in _RUN_PATTERNS for path in sorted(start.glob(pattern))]
    return _starting(incomplete, [(str(path.parent), "run") for path in found[:_MOST_RUNS]])


def setting_completer(name: str) -> Completer | None:
    """Return what completes the values of a setting; None where any text may stand."""
    from lorafit.config.fields import field_rule

    if name == "model":
        return None
    rule = field_rule(name)
    values = rule.choices
    if name == "chat_template":
        values = ("chatml",)
    if not values:
        return None
    return lambda incomplete: _starting(incomplete, [(value, "") for value in values])


def complete_overrides(incomplete: str) -> list[Completion]:
    """Return `setting=` for a name, and `setting=value` where its values are known."""
    from lorafit.config.fields import field_rule
    from lorafit.config.schema import Settings

    name, equals, value = incomplete.partition("=")
    if not equals:
        described = [
            (f"{field}=", info.description or "") for field, info in Settings.model_fields.items()
        ]
        return _starting(name, described)
    if name not in Settings.model_fields:
        return []
    rule = field_rule(name)
    values = ("true", "false") if rule.kind == "boolean" else rule.choices
    return [(f"{name}={one}", "") for one in values if one.startswith(value)]


def _starting(incomplete: str, candidates: list[Completion]) -> list[Completion]:
    # Help is shown on one line.
    return [
        (word, " ".join(words.split())) for word, words in candidates if word.startswith(incomplete)
    ]
