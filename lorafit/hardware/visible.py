"""`CUDA_VISIBLE_DEVICES`: which of the machine's GPUs a process may use, and in what order."""

import os
import re
from collections.abc import Sequence

from lorafit.errors import DeviceError
from lorafit.hardware.info import DeviceInfo
from lorafit.text import excerpt

VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_indexes(value: str | None, uuids: Sequence[Sequence[str]]) -> list[int]:
    """Return the indexes of the visible GPUs, in the order in which CUDA counts them.

    Args:
        value: the variable's value; None when it is not set: all GPUs are visible.
        uuids: for each GPU of the machine the UUIDs it answers to: its own (`GPU-…`), and those
            of its MIG slices (`MIG-…`).

    CUDA accepts a unique beginning of a UUID. It stops silently at the first entry that it does
    not know; here that is an error, except for -1, which is the documented way to end the list.

    Raises:
        DeviceError: the value is empty, hides everything, or names a GPU that is not there.
    """
    if value is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in value.split(",")):
        if entry == "-1":
            break
        chosen.append(_index_of(entry, value, uuids))
    if not chosen:
        raise _unusable(value, "hides every GPU")
    if len(set(chosen)) < len(chosen) and "MIG-" not in value:
        raise _unusable(value, "names a GPU twice, after which CUDA shows none")
    return chosen


def show_only(device: DeviceInfo) -> None:
    """Make a CUDA device the only one that this process sees, before CUDA is first used.

    It is `cuda:0` from then on. Of any other kind of device nothing is hidden.
    """
    if device.kind != "cuda" or device.index in _shown:
        return
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    os.environ[VARIABLE] = names[device.index] if names != [""] else str(device.index)
    _shown.add(device.index)


def torch_name(device: DeviceInfo) -> str:
    """Return what this process calls a device now."""
    return "cuda:0" if device.index in _shown and device.kind == "cuda" else device.torch_device


_shown: set[int] = set()
"""The device that is left, by the number that it had: asking again changes nothing."""


def _index_of(entry: str, value: str, uuids: Sequence[Sequence[str]]) -> int:
    if re.fullmatch(r"[0-9]+", entry):
        if int(entry) < len(uuids):
            return int(entry)
        raise _unusable(value, f"asks for GPU {entry[:20]}, which this machine lacks")
    if entry.lower().startswith(("gpu-", "mig-")):
        found = [
            index
            for index, names in enumerate(uuids)
            if any(name.lower().startswith(entry.lower()) for name in names)
        ]
        if len(found) == 1:
            return found[0]
        which = "several GPUs" if found else "no GPU of this machine"
        raise _unusable(value, f"has {excerpt(entry, 44)!r}, which fits {which}")
    if not entry:
        raise _unusable(value, "hides every GPU" if not value.strip() else "has an empty entry")
    raise _unusable(value, f"has {excerpt(entry, 44)!r}, which is neither an index nor a UUID")


def _unusable(value: str, what: str) -> DeviceError:
    return DeviceError(
        f"{VARIABLE}={excerpt(value)!r} {what}",
        where="environment",
        hint=f"unset {VARIABLE}, or set it to the indexes to use, such as {VARIABLE}=0; "
        "--device cpu trains on the CPU",
    )
