"""What runs on this very machine measured, and what it corrects in later estimates.

A trace knows what PyTorch allocates; what a process takes beside it (the CUDA context, the kernels
that are loaded, the interpreter) is a figure from a table. A calibration step measures it. Records
lie in the user's cache folder, one for each combination of device, driver, library versions and
kernels: what was measured under one combination says nothing of another.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lorafit.files import cache_folder, replace_text
from lorafit.hardware.info import DeviceInfo
from lorafit.text import excerpt
from lorafit.units import format_bytes

logger = logging.getLogger("lorafit")

Source = Literal["calibration step", "finished run"]
_SOURCES = ("calibration step", "finished run")
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
_SCHEMA_VERSION = 1
_MAX_MEASUREMENTS = 50
"""The latest are kept."""


@dataclass(frozen=True)
class PeakBytes:
    """Peak memory of a run, predicted or measured; None where the device has no such counter."""

    allocated_bytes: int | None
    reserved_bytes: int | None
    process_bytes: int | None
    """All that the process holds, context included."""


@dataclass(frozen=True)
class Measurement:
    """A peak that was measured, beside the prediction for the same run."""

    measured_at: str
    """ISO 8601, UTC."""
    source: Source
    model: str
    predicted: PeakBytes
    measured: PeakBytes

    def residuals(self) -> dict[str, int | None]:
        """Return measured less predicted bytes by component; None where not measured.

        `context_bytes` is what the process holds beside what its allocator reserves; where
        nothing but the process can be measured, all that the prediction misses.
        """
        measured, predicted = self.measured, self.predicted
        context = _difference(measured.process_bytes, predicted.process_bytes)
        reserved = _difference(measured.reserved_bytes, predicted.reserved_bytes)
        if context is not None and reserved is not None:
            context -= reserved
        return {
            "allocated_bytes": _difference(measured.allocated_bytes, predicted.allocated_bytes),
            "reserved_bytes": reserved,
            "context_bytes": context,
        }


def _difference(measured: int | None, predicted: int | None) -> int | None:
    return None if measured is None or predicted is None else measured - predicted


@dataclass(frozen=True)
class Combination:
    """What a measurement holds for."""

    kind: str
    device: str
    driver: str | None
    kernels: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, device: DeviceInfo, kernels: str) -> "Combination":
        """Return the combination of a device and the libraries that are installed here."""
        versions = {name: _version(name) for name in _PACKAGES}
        return cls(device.kind, device.name, device.driver, kernels, versions)

    def file(self) -> Path:
        """Return where its record lies."""
        name = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return cache_folder() / "calibration" / f"{name[:32]}.json"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


class Calibration(NamedTuple):
    """What calibration steps found for a combination."""

    context_residual_bytes: int
    """Bytes beside the allocator's, measured less predicted: the most of all measurements."""
    reason: str

    def apply(self, context_bytes: int) -> int:
        """Return the context as measured, at least 0: no process falls below its tensors."""
        return max(0, context_bytes + self.context_residual_bytes)


class Record(NamedTuple):
    """The measurements of a combination, and what is wrong with their file, if anything is."""

    measurements: tuple[Measurement, ...]
    problem: str | None

    def calibration(self, device_name: str) -> Calibration | None:
        """Return the correction, or None without a calibration step that measured the process.

        Finished runs are kept to be compared; their rows may be shorter than those that were
        estimated, so they correct nothing.
        """
        found = [
            (residual, measurement)
            for measurement in self.measurements
            if measurement.source == "calibration step"
            and (residual := measurement.residuals()["context_bytes"]) is not None
        ]
        if not found:
            return None
        residual, measurement = max(found, key=lambda pair: pair[0])
        relation = "more" if residual >= 0 else "less"
        reason = (
            f"calibrated: a step with {excerpt(measurement.model)} on {device_name} took "
            f"{format_bytes(abs(residual))} {relation} beside its tensors on "
            f"{measurement.measured_at[:10]}, with this driver, these libraries and kernels"
        )
        return Calibration(residual, reason)


def read_record(combination: Combination) -> Record:
    """Return the measurements of a combination; a damaged file counts as none, and is named."""
    file = combination.file()
    try:
        return Record(_parse(json.loads(file.read_text("utf-8")), combination), None)
    except FileNotFoundError:
        return Record((), None)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as problem:
        reason = excerpt(str(problem), 100)
        return Record((), f"the calibration record {file} is damaged and is ignored: {reason}")


def add_measurement(combination: Combination, measurement: Measurement) -> str | None:
    """Append to the record of a combination, replacing the file as a whole.

    Returns:
        Why it could not be stored, or None.
    """
    kept = (*read_record(combination).measurements, measurement)[-_MAX_MEASUREMENTS:]
    document = {
        "schema_version": _SCHEMA_VERSION,
        "combination": asdict(combination),
        "measurements": [{**asdict(one), "residuals": one.residuals()} for one in kept],
    }
    try:
        replace_text(combination.file(), json.dumps(document, indent=2) + "\n")
    except OSError as problem:
        return f"the measured memory could not be stored: {problem.strerror or problem}"
    return None


def _parse(document: Any, combination: Combination) -> tuple[Measurement, ...]:
    if document["schema_version"] != _SCHEMA_VERSION:
        raise ValueError(f"schema_version {document['schema_version']!r} is not {_SCHEMA_VERSION}")
    if document["combination"] != asdict(combination):
        raise ValueError("it is of another device, driver or set of libraries")
    return tuple(_parse_measurement(entry) for entry in document["measurements"])


def _parse_measurement(entry: Any) -> Measurement:
    if entry["source"] not in _SOURCES:
        raise ValueError(f"source {entry['source']!r} is unknown")
    texts = (entry["measured_at"], entry["model"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("measured_at and model must be text")
    predicted, measured = (_parse_peak(entry[name]) for name in ("predicted", "measured"))
    return Measurement(entry["measured_at"], entry["source"], entry["model"], predicted, measured)


def _parse_peak(values: Any) -> PeakBytes:
    peak = PeakBytes(**values)
    for name, value in asdict(peak).items():
        if value is not None and (type(value) is not int or value < 0):
            raise TypeError(f"{name} is {value!r}, no number of bytes")
    return peak
