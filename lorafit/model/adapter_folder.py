"""Where an adapter lies, told without reading its weights: before a base model is looked for."""

import json
from pathlib import Path

from lorafit.errors import AdapterError
from lorafit.text import excerpt, shell_word

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_MODEL_CONFIG = "config.json"


def require_adapter(folder: Path) -> Path:
    """Return the configuration file of the adapter in `folder`.

    Raises:
        AdapterError: there is no adapter; the hint names what was probably meant.
    """
    if not folder.is_dir():
        raise AdapterError(
            f"there is no adapter folder {excerpt(str(folder))}", hint=_unfinished(folder)
        )
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"has no {CONFIG_FILE}", where=str(folder), hint=_meant(folder))
    return path


def recorded_base(folder: Path) -> str | None:
    """Return the base model that an adapter's own configuration names, if it names one."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) and name else None


def _meant(folder: Path) -> str:
    inner = folder / "adapter"
    if (inner / CONFIG_FILE).is_file():
        return f"did you mean --adapter {inner}?"
    if (folder / _MODEL_CONFIG).is_file():
        return f"this is a model and no adapter: --model {shell_word(folder)}, without --adapter"
    if any(folder.glob(f"checkpoint-*/{CONFIG_FILE}")):
        return _unfinished(inner)
    return "check --adapter"


def _unfinished(folder: Path) -> str:
    """Return the hint for an adapter that is not there: its run may not have ended yet."""
    run = folder.parent
    found = [path.parent for path in run.glob(f"checkpoint-*/{CONFIG_FILE}")]
    by_step = {int(n): path for path in found if (n := path.name.partition("-")[2]).isdigit()}
    if by_step:
        return (
            "the run has not ended: its `lorafit train` command goes on, and writes it at the end; "
            f"its newest checkpoint is an adapter too: {shell_word(by_step[max(by_step)])}"
        )
    if (run / _MODEL_CONFIG).is_file():
        return f"{excerpt(str(run))} is a model and no run: --model {shell_word(run)}"
    return "a run writes its adapter to OUTPUT_DIR/adapter"
