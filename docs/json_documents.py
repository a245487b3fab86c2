"""The keys of every JSON document, read off what the commands print in a folder of their own."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from offline import environment, make_data, make_model

from lorafit.config.presets import DEFAULT_ROW
from lorafit.config.schema import Settings
from lorafit.demo.problem import LABELS
from lorafit.evaluation.classification import NO_LABEL
from lorafit.hardware.catalog import CATALOG
from lorafit.model.lora import DEFAULT_TARGETS

COMMANDS = (
    "lorafit presets list --json",
    "lorafit presets show balanced --json",
    "lorafit presets diff low high --hardware a10g --json",
    "lorafit presets recommend --situation underfitting --hardware a10g --fast --json",
    "lorafit config show --preset balanced --json",
    "lorafit config validate my.yaml --json",
    "lorafit config convert trainer.json --json",
    "lorafit config groups --json",
    "lorafit config aliases --json",
    "lorafit data inspect my.jsonl --json",
    "lorafit schedule --preset balanced --rows 1000 --compare 2 --json",
    "lorafit estimate-memory --preset balanced --json",
    "lorafit estimate-memory --preset balanced --sweep max_length=64,128 --json",
    "lorafit train --data my.jsonl --dry-run --json",
    "lorafit train --data my.jsonl --output-dir outputs/first --json",
    "lorafit train --data my.jsonl --output-dir outputs/second --lora-r 4 --json",
    "lorafit checkpoints list outputs/first --json",
    "lorafit checkpoints verify outputs/first --json",
    "lorafit checkpoints diff outputs/first/checkpoint-2 outputs/first/checkpoint-4 --json",
    "lorafit checkpoints prune outputs/first --keep 1 --json",
    "lorafit evaluate --adapter outputs/first/adapter --data test.jsonl --max-new-tokens 8 --json",
    "lorafit generate --adapter outputs/first/adapter --prompt Hello --max-new-tokens 8 --json",
    "lorafit report outputs/first outputs/second --json",
    "lorafit export outputs/first --json",
    "lorafit doctor --json",
)
_NAMES = {
    "DEVICE": {*CATALOG, DEFAULT_ROW},
    "LABEL": {*LABELS, NO_LABEL},
    "MODULE": set(DEFAULT_TARGETS["phi"]),
}
_MAX_DEPTH = 4
_MANY = 12


def document_lines(folder: Path) -> list[str]:
    """Return the page: for each command the keys of its document, with the types of their values.

    Raises:
        RuntimeError: a command failed, or printed no document.
    """
    lines = [
        "# JSON documents",
        "",
        "With `--json` a command prints one document to stdout and nothing else. Keys are only "
        "added within a `schema_version`; a key that may be missing or null must be expected. "
        "The lists below are what each command printed when this page was made, on a tiny model "
        "and a CPU. `lorafit doctor --json` also has a JSON schema: `lorafit/doctor/"
        "doctor.schema.json`.",
        "",
        "`SETTING` stands for the name of a [setting](SETTINGS.md), `DEVICE` for one of the "
        "catalog (or `default`), `MODULE` for a target module, `LABEL` for a label of the data, "
        "`NAME` for any other name; `[]` for the entries of a list.",
    ]
    make_data(folder)
    (folder / "my.yaml").write_text("preset: balanced\nlearning_rate: 1.0e-4\n", encoding="utf-8")
    trainer = {"learning_rate": 1e-4, "num_train_epochs": 1, "r": 8, "fp16": True}
    (folder / "trainer.json").write_text(json.dumps(trainer), encoding="utf-8")
    model = make_model(folder / "model")
    for command in COMMANDS:
        found = _run(command, folder, environment(command, model, folder / "cache"))
        lines += ["", f"## `{command}`", "", "| key | value |", "|---|---|"]
        lines += [f"| `{key}` | {kinds} |" for key, kinds in _keys(found)]
    return lines


def _run(command: str, folder: Path, variables: dict[str, str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # `doctor` ends with 1 where something of this machine is wrong: a document all the same.
    if done.returncode != 0 and "doctor" not in command:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-800:]}")
    return json.loads(done.stdout)


def _keys(document: dict[str, Any]) -> list[tuple[str, str]]:
    found: dict[str, set[str]] = {}
    _collect(document, "", found, 0)
    return [(key, ", ".join(sorted(kinds))) for key, kinds in found.items()]


def _collect(value: Any, path: str, found: dict[str, set[str]], depth: int) -> None:
    if isinstance(value, dict) and value and depth < _MAX_DEPTH:
        name = _shared_name(value, path)
        if path:
            found.setdefault(path, set()).add("object")
        for key, inner in value.items():
            _collect(inner, f"{path}.{name or key}".lstrip("."), found, depth + 1)
    elif isinstance(value, list) and value and depth < _MAX_DEPTH:
        found.setdefault(path, set()).add("list")
        for inner in value:
            _collect(inner, f"{path}[]", found, depth)
    elif path:
        found.setdefault(path, set()).add(_kind(value))


def _shared_name(value: dict[str, Any], path: str) -> str | None:
    """Return what stands for the keys of a mapping from names; None for a record."""
    of_settings = path.rpartition(".")[2].removesuffix("[]") in ("settings", "differences")
    if set(value) <= set(Settings.model_fields) and (len(value) > 1 or of_settings):
        return "SETTING"
    for name, members in _NAMES.items():
        if set(value) <= members:
            return name
    return "NAME" if _is_alike(value) else None


def _is_alike(value: dict[str, Any]) -> bool:
    return len(value) > _MANY and len({_kind(inner) for inner in value.values()}) == 1


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list"}
    return kinds.get(type(value), "object")
