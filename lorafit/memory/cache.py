"""Estimates on disk: a repeated question is answered without a trace, and without torch.

An entry is named by a hash of everything that the answer hangs on: the settings that change
memory, the model's configuration, the device, and the versions of the libraries that are traced.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorafit.config.schema import Settings, setting_group
from lorafit.files import cache_folder
from lorafit.hardware.info import DeviceInfo
from lorafit.memory.calibration import Combination, read_record
from lorafit.memory.estimate import Estimate, Peak

logger = logging.getLogger("lorafit")

_GROUPS = frozenset({"Model", "LoRA", "Batch and memory"})
_ALSO = frozenset({"max_length", "optim", "max_grad_norm", "label_smoothing_factor"})
_PACKAGES = ("lorafit", "torch", "transformers", "peft", "bitsandbytes")


def cached_estimate(
    settings: Settings,
    model_config: dict[str, Any],
    device: DeviceInfo,
    compute: Callable[[], Estimate],
    *,
    variant: str = "",
    folder: Path | None = None,
) -> Estimate:
    """Return the stored estimate for this question, or compute and store it.

    Args:
        settings: every setting of the run.
        model_config: config.json of the base model.
        device: the device, detected or planned for.
        compute: makes the estimate when it is not stored.
        variant: names whatever else the answer hangs on, such as `plain_script`.
        folder: where entries are stored; none: the user's cache folder.
    """
    folder = folder or default_folder()
    file = folder / f"{question_hash(settings, model_config, device, variant)}.json"
    stored = _read(file)
    if stored is not None:
        return replace(stored, model=settings.model, settings=settings.model_dump(mode="json"))
    estimate = compute()
    _write(file, estimate)
    return estimate


def default_folder() -> Path:
    """Return the folder of stored estimates in the user's cache folder."""
    return cache_folder() / "estimates"


def question_hash(
    settings: Settings, model_config: dict[str, Any], device: DeviceInfo, variant: str
) -> str:
    """Return a hash of everything that an estimate hangs on."""
    relevant = {
        name: value
        for name, value in settings.model_dump(mode="json").items()
        if name in _ALSO or (setting_group(name) in _GROUPS and name not in ("model", "revision"))
    }
    facts = {
        "settings": relevant,
        "config": model_config,
        "device": [
            device.kind,
            device.name,
            device.catalog_key,
            device.usable_bytes,
            device.compute_capability,
            device.supports_bfloat16,
            device.detected,
        ],
        "versions": {name: _version(name) for name in _PACKAGES},
        "sources": _sources_state(),
        "calibration": _calibration_state(device, settings.kernels),
        "variant": variant,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _calibration_state(device: DeviceInfo, kernels: str) -> list[object]:
    """Return what was measured here that corrects estimates, and whether its record is damaged."""
    record = read_record(Combination.of(device, kernels))
    return [record.calibration(device.name), record.problem]


def _sources_state() -> list[list[object]]:
    """Return name, size and time of the files that make an estimate: a checkout has no version."""
    package = Path(__file__).parent.parent
    files = sorted([*package.glob("memory/*.py"), *package.glob("model/**/*.py")])
    states = [(file.name, file.stat()) for file in files]
    return [[name, state.st_size, state.st_mtime_ns] for name, state in states]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _read(file: Path) -> Estimate | None:
    try:
        document = json.loads(file.read_text("utf-8"))
        return Estimate(
            model=document["model"],
            hardware=document["hardware"],
            settings=document["settings"],
            peak=Peak(**document["peak"]),
            breakdown=document["breakdown"],
            capacity_bytes=document["capacity_bytes"],
            verdict=document["verdict"],
            reasons=tuple(document["reasons"]),
            elapsed_seconds=document["elapsed_seconds"],
            calibrated=document["calibrated"],
            processes=document["processes"],
            cached=True,
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        logger.debug("a stored estimate is unreadable and is made again: %s", problem)
        return None


def _write(file: Path, estimate: Estimate) -> None:
    """Store an estimate; a cache that cannot be written costs time, not the answer."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(estimate.document(), stream)
        Path(name).replace(file)
    except OSError as problem:
        logger.debug("the estimate is not stored: %s", problem)
