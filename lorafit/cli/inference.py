"""What `evaluate` and `generate` share: an adapter remembers the run that made it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.cli.settings_flags import RunChoices
from lorafit.errors import UsageError
from lorafit.model.adapter_folder import recorded_base, require_adapter

if TYPE_CHECKING:
    from lorafit.config.layers import Layer, Resolved
    from lorafit.hardware.info import DeviceInfo

# Settings of the run that decide how its model reads and writes; the rest is about training.
_REMEMBERED = (
    "model", "revision", "quantization", "double_quant", "compute_dtype", "attn_implementation",
    "prompt_template", "completion_template", "label_field", "chat_template", "max_length",
    "train_on_prompt",
)  # fmt: skip


def resolve_inference(
    choices: RunChoices, adapter: str | None
) -> "tuple[Resolved, DeviceInfo, Path | None]":
    """Return settings, device and adapter folder.

    Model and templates are those of the run that wrote the adapter, where its run.json lies
    beside the adapter; of an adapter from elsewhere, the model that it names itself. What the
    command line says wins.

    Raises:
        AdapterError: there is no adapter, which is said before its base is looked for.
    """
    if adapter == "":
        raise UsageError("--adapter is empty", hint="--adapter OUTPUT_DIR/adapter")
    folder = Path(adapter) if adapter else None
    recorded = None
    if folder is not None:
        config = require_adapter(folder)
        recorded = _recorded_layer(folder) or _base_layer(folder, config)
    resolved, device = choices.resolve(recorded)
    return resolved, device, folder


def _recorded_layer(adapter: Path) -> "Layer | None":
    from lorafit.config.layers import Given, Layer

    path = adapter.parent / "run.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        values = {name: settings[name]["value"] for name in _REMEMBERED if name in settings}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    given = {name: Given(value, str(path)) for name, value in values.items() if value is not None}
    return Layer(f"the run of {adapter}", "file", given)


def _base_layer(adapter: Path, config: Path) -> "Layer | None":
    from lorafit.config.layers import Given, Layer

    base = recorded_base(adapter)
    if base is None:
        return None
    return Layer(f"the adapter {adapter}", "file", {"model": Given(base, str(config))})
