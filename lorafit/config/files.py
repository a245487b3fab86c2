"""Configuration files as layers: settings flat or in sections, with a preset as their base."""

from pathlib import Path

import lorafit
from lorafit.config.document import Document
from lorafit.config.fields import show_value
from lorafit.config.layers import Given, Layer
from lorafit.config.loading import load_document
from lorafit.config.schema import SCHEMA_VERSION
from lorafit.errors import ConfigError, Problem
from lorafit.text import excerpt


def config_file_layer(path: Path) -> tuple[Layer, Given | None]:
    """Return the settings of a configuration file, and the preset that it names as its base.

    Settings may stand flat or in sections.

    Raises:
        ConfigError: the file cannot be read, or needs a newer lorafit.
    """
    document = load_document(path)
    require_version(document, needed_by="file")
    base = document.entries.get("preset")
    values: dict[str, Given] = {}
    problems = []
    for key, node in document.flat():
        if key in ("schema_version", "preset") or node.value == {}:
            continue
        if key in values:
            # `lora.r: 8` and, elsewhere, `lora: {r: 9}`.
            message = f"it is given twice: here and at {values[key].where}"
            where = f"{document.where(node)}: {excerpt(key, 60)}"
            problems.append(Problem(where, message, "keep one of the two"))
        values[key] = Given(node.plain(), document.where(node))
    if base is not None and not isinstance(base.value, str):
        where = f"{document.where(base)}: preset"
        problems.append(Problem(where, "it must be the name of a preset", "preset: balanced"))
        base = None
    layer = Layer(document.source, "file", values, tuple(problems))
    return layer, Given(base.value, document.where(base)) if base else None


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
