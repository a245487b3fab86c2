"""`--gpus 0,1`: which GPUs of the machine a run may use."""

import os
from dataclasses import replace

from lorafit.cli.settings_flags import RunChoices
from lorafit.errors import UsageError
from lorafit.hardware.visible import VARIABLE
from lorafit.text import excerpt


def with_gpus(choices: RunChoices, gpus: str | None) -> RunChoices:
    """Return the choices for the GPUs of `--gpus`, which become the visible ones of the process.

    Indexes count the GPUs that are visible already, as torch counts them. Several are one process
    each, see `lorafit.cli.launch`; this process takes the first.

    Raises:
        UsageError: the list is no list of GPUs, or contradicts --device or --hardware.
    """
    if gpus is None:
        return choices
    os.environ[VARIABLE] = visible_names(choices, gpus)[0]
    return replace(choices, gpus=gpus, flags={**choices.flags, "device": "cuda"})


def visible_names(choices: RunChoices, gpus: str) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES calls the GPUs of `--gpus`.

    Raises:
        UsageError: as `with_gpus`.
    """
    if not gpus.strip():
        raise UsageError("--gpus is empty", hint="--gpus 0, or leave it out")
    indexes = _indexes(gpus)
    device = str(choices.flags.get("device", "cuda"))
    if device not in ("auto", "cuda"):
        raise UsageError(
            f"--gpus {gpus} names GPUs, --device {excerpt(device, 40)} does not",
            hint="keep one of the two",
        )
    if choices.hardware:
        raise UsageError(
            f"--gpus {gpus} names GPUs of this machine, --hardware plans for another",
            hint="keep one of the two",
        )
    return [_visible(index) for index in indexes]


def _indexes(gpus: str) -> list[int]:
    parts = [part.strip() for part in gpus.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts):
        raise UsageError(
            f"{excerpt(gpus, 40)!r} is no list of GPUs", where="--gpus", hint="--gpus 0, or 0,1"
        )
    indexes = [int(part) for part in parts]
    if len(set(indexes)) < len(indexes):
        raise UsageError("a GPU is named twice", where=f"--gpus {gpus}", hint="--gpus 0,1")
    return indexes


def _visible(index: int) -> str:
    """Return what CUDA_VISIBLE_DEVICES calls the GPU that torch calls `cuda:index` now."""
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    if names == [""]:
        return str(index)
    if index >= len(names):
        raise UsageError(
            f"{VARIABLE} shows {len(names)} GPU{'s' if len(names) > 1 else ''}, and {index} is "
            "not among them",
            where=f"--gpus {index}",
            hint=f"count from 0 to {len(names) - 1}, or unset {VARIABLE}",
        )
    return names[index]
