"""Configuration files as layers: settings flat or in sections, with a preset as their base."""

from pathlib import Path

import lorafit
from lorafit.config.aliases import SECTIONS
from lorafit.config.document import Document, Node, Plain
from lorafit.config.fields import show_value
from lorafit.config.foreign import hf_rule, target_modules, trackers
from lorafit.config.layers import Given, Layer
from lorafit.config.loading import load_document
from lorafit.config.names import canonical_name
from lorafit.config.outcomes import Carried, Lost, Outcome, Rule
from lorafit.config.schema import SCHEMA_VERSION
from lorafit.errors import ConfigError, Problem
from lorafit.text import excerpt


def config_file_layer(path: Path) -> tuple[Layer, Given | None]:
    """Return the settings of a configuration file, and the preset that it names as its base.

    Settings may stand flat or in sections, under lorafit's names or Hugging Face's: `bf16: true`
    is `compute_dtype: bfloat16`. What such a name asks for in vain is a warning, or a problem
    where the run would be another one.

    Raises:
        ConfigError: the file cannot be read, or needs a newer lorafit.
    """
    document = load_document(path)
    require_version(document, needed_by="file")
    base = document.entries.get("preset")
    reading = _Reading(document)
    for key, node in document.flat():
        if key not in ("schema_version", "preset") and node.value != {}:
            reading.add(key, node)
    problems = reading.problems
    if base is not None and not isinstance(base.value, str):
        where = f"{document.where(base)}: preset"
        problems.append(Problem(where, "it must be the name of a preset", "preset: balanced"))
        base = None
    layer = Layer(document.source, "file", reading.values, tuple(problems), tuple(reading.remarks))
    return layer, Given(base.value, document.where(base)) if base else None


class _Reading:
    """The settings of a file as they are read, and what is wrong or without effect."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.values: dict[str, Given] = {}
        self.problems: list[Problem] = []
        self.remarks: list[str] = []

    def add(self, key: str, node: Node) -> None:
        """Add one key of the file, under lorafit's name or another's."""
        value, where = node.plain(), f"{self.document.where(node)}: {excerpt(key, 60)}"
        outcome = _foreign_outcome(key, value)
        if outcome is None:
            self._add_own(key, Given(value, self.document.where(node)))
        elif isinstance(outcome, Carried):
            first = self.values.get(outcome.setting)
            if first is None:
                where = f"{self.document.where(node)} ({excerpt(key, 60)})"
                self.values[outcome.setting] = Given(outcome.value, where)
            elif first.value != outcome.value:
                message = f"it gives {outcome.setting} another value than {first.where}"
                self.problems.append(Problem(where, message, "keep one of the two"))
        elif isinstance(outcome, Lost) and outcome.stops_run:
            self.problems.append(Problem(where, outcome.reason, "lorafit config convert says more"))
        elif isinstance(outcome, Lost):
            self.remarks.append(f"{where}: it has no effect: {outcome.reason}")

    def _add_own(self, key: str, given: Given) -> None:
        first = self.values.get(key)
        if first is not None:
            # `lora.r: 8` and, elsewhere, `lora: {r: 9}`.
            message = f"it is given twice: here and at {first.where}"
            where = f"{given.where}: {excerpt(key, 60)}"
            self.problems.append(Problem(where, message, "keep one of the two"))
        self.values[key] = given


_TEXT_ELSEWHERE: dict[tuple[str, str], Rule] = {
    ("report_to", "none"): trackers,
    ("report_to", "tensorboard"): trackers,
    ("report_to", "wandb"): trackers,
    ("report_to", "all"): trackers,
    ("target_modules", "all"): target_modules,
    ("target_modules", "all-linear"): target_modules,
}
"""Words that stand elsewhere where lorafit has a list."""


def _foreign_outcome(key: str, value: Plain) -> Outcome | None:
    """Return what a key of Hugging Face's vocabulary is here; None for lorafit's own and others."""
    section, dot, name = key.rpartition(".")
    if dot and section not in SECTIONS:
        return None
    if canonical_name(key) is not None:
        rule = _TEXT_ELSEWHERE.get((name, value)) if isinstance(value, str) else None
    else:
        rule = hf_rule(name)
    return None if rule is None else rule(value)


def require_version(document: Document, *, needed_by: str) -> None:
    """Check that the file's schema, where it names one, is one that this lorafit reads.

    Raises:
        ConfigError: the schema is newer, or no version at all.
    """
    node = document.entries.get("schema_version")
    if node is None or (type(node.value) is int and node.value == SCHEMA_VERSION):
        return
    where = f"{document.where(node)}: schema_version"
    if type(node.value) is int and node.value > SCHEMA_VERSION:
        message = (
            f"this {needed_by} has schema {show_value(node.value)}: it needs a newer lorafit; "
            f"lorafit {lorafit.__version__} reads schema {SCHEMA_VERSION}"
        )
        raise ConfigError([Problem(where, message, "pip install --upgrade lorafit")])
    message = f"{excerpt(show_value(node.plain()), 40)} is not a schema version"
    raise ConfigError([Problem(where, message, f"write `schema_version: {SCHEMA_VERSION}`")])
