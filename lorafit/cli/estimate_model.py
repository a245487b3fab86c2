"""The base model of an estimate: config.json of a folder, of the package, or of the hub."""

import json
from pathlib import Path
from typing import Any

from lorafit.config.schema import Settings
from lorafit.errors import ModelError


def config_of(name: str, revision: str | None) -> dict[str, Any]:
    """Return config.json of a folder, of a bundled model, or of a hub model.

    A folder's is read as it stands: only `verify_model` loads transformers, which takes seconds,
    and it need not where the answer is stored.
    """
    from lorafit.model.architectures import bundled_config, bundled_models
    from lorafit.model.source import locate_model

    if Path(name).is_dir():
        config = _read_plainly(Path(name) / "config.json")
        return config or locate_model(name, revision, need_weights=False).config
    bundled = bundled_config(name)
    if bundled is not None:
        return bundled
    if _is_hub_id(name):
        from lorafit.model.hub import download_model

        try:
            folder, _ = download_model(name, revision, needs="config")
        except ModelError as failure:
            known = "known without a download: " + ", ".join(bundled_models())
            hint = f"{failure.hint}\n{known}" if failure.hint else known
            raise ModelError(failure.message, hint=hint, where=failure.where) from None
        return locate_model(str(folder), need_weights=False).config
    return locate_model(name, revision, need_weights=False).config


def _is_hub_id(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and not Path(name).exists() and "/" in name


def _read_plainly(file: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None


def verify_model(settings: Settings) -> None:
    """Check a model folder as training does: no code of its own, a decoder of sane size."""
    from lorafit.model.source import locate_model

    if Path(settings.model).is_dir():
        locate_model(settings.model, settings.revision, need_weights=False)
