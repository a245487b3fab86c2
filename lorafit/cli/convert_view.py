"""What `lorafit config convert` tells: the settings on stdout, the account of them on stderr."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lorafit.cli import console
from lorafit.config.convert.dialects import KIND_NAMES
from lorafit.config.convert.translate import Conversion, Remark
from lorafit.config.schema import SCHEMA_VERSION
from lorafit.text import escape_control, shell_word


def show_conversion(
    conversion: Conversion, text: str, output: str | None, *, as_json: bool
) -> None:
    """Print the converted settings, or the file that they were written to, and what was lost."""
    if as_json:
        console.print_json(_document(conversion, text, output))
        return
    kind = conversion.kind
    console.say(f"{escape_control(conversion.source)} is {KIND_NAMES[kind.value]}: {kind.reason}")
    if output is None:
        console.out(text.rstrip("\n"))
    _say_remarks("as lorafit does anyway", conversion.kept)
    _say_remarks("not carried over", conversion.lost)
    for remark in conversion.lost:
        if remark.changes_run:
            console.warn(f"without {remark.key} ({remark.where}) this is another run")
    for warning in conversion.warnings:
        console.warn(warning)
    said = [setting for setting in conversion.settings if setting.key]
    console.say(
        f"{len(said)} settings carried over, {len(conversion.settings) - len(said)} implied, "
        f"{len(conversion.kept)} need nothing, {len(conversion.lost)} not carried over"
    )
    if output is not None:
        shown = shell_word(output)
        console.say(f"written: {shown}")
        data = "" if "data" in conversion.values else " --data FILE"
        console.say(f"next: lorafit train --config {shown}{data} --dry-run")


def _say_remarks(title: str, remarks: Sequence[Remark]) -> None:
    if not remarks:
        return
    console.say(f"{title}:")
    for remark in remarks:
        shown = f"  {remark.key} ({remark.where}): {remark.reason}"
        console.say(escape_control(shown))


def _document(conversion: Conversion, text: str, output: str | None) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "file": conversion.source,
        "kind": conversion.kind.value,
        "reason": conversion.kind.reason,
        "settings": conversion.values,
        "origins": {
            setting.name: {"key": setting.key or None, "where": setting.where}
            for setting in conversion.settings
        },
        "kept": [asdict(remark) for remark in conversion.kept],
        "not_carried_over": [asdict(remark) for remark in conversion.lost],
        "warnings": list(conversion.warnings),
        "output": output,
        "text": text,
    }
