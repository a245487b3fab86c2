"""A converted configuration as a settings file, each setting under a comment that says whence."""

import json
import re
from pathlib import Path

from lorafit.config.convert.dialects import KIND_NAMES
from lorafit.config.convert.translate import Conversion
from lorafit.config.fields import SettingValue, show_value
from lorafit.config.schema import SCHEMA_VERSION, SETTING_GROUPS, setting_group
from lorafit.errors import StorageError
from lorafit.text import escape_control


def render_config(conversion: Conversion) -> str:
    """Return the YAML text of the settings, for `--config`; it reads back to the same values."""
    source = escape_control(conversion.source)
    lines = [
        f"# Made by lorafit config convert from {source}, {KIND_NAMES[conversion.kind.value]}.",
        f"schema_version: {SCHEMA_VERSION}",
    ]
    for group in SETTING_GROUPS:
        chosen = [
            setting for setting in conversion.settings if setting_group(setting.name) == group
        ]
        if not chosen:
            continue
        lines += ["", f"# -- {group}"]
        for setting in chosen:
            origin = f"{setting.key} ({setting.where})" if setting.key else setting.where
            lines += [f"# {escape_control(origin)}", f"{setting.name}: {_yaml(setting.value)}"]
    if conversion.lost:
        lines += ["", "# Not carried over:"]
        lines += [
            f"#   {escape_control(lost.key)} ({escape_control(lost.where)}): "
            f"{escape_control(lost.reason)}"
            for lost in conversion.lost
        ]
    return "\n".join(lines) + "\n"


def _yaml(value: SettingValue) -> str:
    if isinstance(value, str):
        # JSON's quoted text is YAML's, as long as characters stand for themselves.
        text = json.dumps(value, ensure_ascii=False)
        return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda m: f"\\u{ord(m[0]):04x}", text)
    if isinstance(value, tuple):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return "null" if value is None else show_value(value)


def write_config(path: Path, text: str) -> None:
    """Write a new file.

    Raises:
        StorageError: it is there already, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        hint = "give another name, or remove it first"
        raise StorageError("it is there already", where=str(path), hint=hint) from None
    except OSError as problem:
        message = f"cannot be written: {problem.strerror or problem}"
        raise StorageError(message, where=str(path)) from None
