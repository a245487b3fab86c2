"""How fast earlier runs were here, kept in the user's cache: the best source for the next one.

Records lie in one file for each `SpeedKey`: device, shape of the model, and everything else that
decides what a step computes and by which kernels. Batch and length of rows are not part of it: they
are kept with each speed, and the nearest is taken.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.files import cache_folder, replace_text
from lorafit.memory.architecture import read_architecture
from lorafit.report.flops import num_checkpointed_layers
from lorafit.training.planning.fit import model_config

if TYPE_CHECKING:
    from lorafit.training.planning.run_plan import RunPlan

_SCHEMA_VERSION = 1
_MOST_RUNS = 20
"""The latest are kept."""
_MAY_BE_MISSING = ("validation_flops_per_second", "sampling_seconds", "save_seconds")
_PACKAGES = ("lorafit", "torch", "transformers")


@dataclass(frozen=True)
class SpeedKey:
    """What a measured speed holds for."""

    device: str
    num_devices: int
    num_threads: int
    """Threads of a CPU; 0 elsewhere."""
    parallelism: str
    shape: str
    """Hash of the model's architecture: fine-tunes of one model are equally fast."""
    dtype: str
    quantization: str
    kernels: str
    attention: str
    """What keeps rows apart, or `padded`."""
    compiled: bool
    checkpointed_layers: int
    adapter: str
    """Rank, dropout and target modules."""
    optim: str
    versions: Mapping[str, str]

    def file(self) -> Path:
        """Return where its record lies."""
        name = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return cache_folder() / "speeds" / f"{name[:32]}.json"


@dataclass(frozen=True)
class Speed:
    """What a finished run measured; seconds, and rates a second."""

    measured_at: str
    """ISO 8601, UTC."""
    num_steps: int
    """Steps that the rates are of: all but the first."""
    micro_batch: int
    """Rows of a micro-batch, as set."""
    row_tokens: float
    """Mean tokens of a row."""
    tokens_per_second: float
    flops_per_second: float
    first_step_seconds: float
    """What the first step took beyond the others' mean, at least 0."""
    startup_seconds: float
    """From the plan to the first step: loading the model, above all."""
    validation_flops_per_second: float | None
    sampling_seconds: float | None
    """After each validation: samples are written."""
    save_seconds: float | None
    """Of a checkpoint."""
    ending_seconds: float
    """From the last checkpoint to the verified adapter."""


def key_of(plan: "RunPlan") -> SpeedKey:
    """Return the key of a planned run."""
    settings, device = plan.settings, plan.device
    arch = read_architecture(model_config(plan.source))
    shape = json.dumps(asdict(arch), sort_keys=True, default=str)
    attention = plan.batching.attention.value or "padded"
    return SpeedKey(
        device=f"{device.kind} {device.name}",
        num_devices=plan.batch.num_devices,
        num_threads=_num_threads() if device.kind == "cpu" else 0,
        parallelism=plan.parallelism.value,
        shape=hashlib.sha256(shape.encode()).hexdigest()[:16],
        dtype=plan.dtype.value,
        quantization=settings.quantization,
        kernels=settings.kernels,
        attention=f"{attention}, {'packed' if settings.packing else 'rows'}",
        compiled=plan.torch_compile.value,
        checkpointed_layers=num_checkpointed_layers(settings, arch.num_layers),
        adapter=f"r {settings.lora_r}, dropout {settings.lora_dropout:g}, "
        f"{' '.join(sorted(plan.model.targets.names))}",
        optim=settings.optim,
        versions={name: _version(name) for name in _PACKAGES},
    )


def _num_threads() -> int:
    import torch

    return torch.get_num_threads()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def read_speeds(key: SpeedKey) -> tuple[Speed, ...]:
    """Return what was measured, the latest last; a damaged record counts as none."""
    try:
        document = json.loads(key.file().read_text("utf-8"))
        if document["schema_version"] != _SCHEMA_VERSION or document["key"] != asdict(key):
            return ()
        return tuple(_parse(entry) for entry in document["runs"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def _parse(entry: Any) -> Speed:
    speed = Speed(**entry)
    figures = asdict(speed)
    if not isinstance(figures.pop("measured_at"), str):
        raise TypeError("measured_at must be text")
    rates = {"row_tokens", *(name for name in figures if name.endswith("per_second"))}
    for name, value in figures.items():
        is_missing = value is None and name in _MAY_BE_MISSING
        is_sane = is_missing or (math.isfinite(value) and value >= 0)
        if not is_sane or (name in rates and value == 0):
            raise ValueError(f"{name} cannot be {value!r}")
    return speed


def add_speed(key: SpeedKey, speed: Speed) -> str | None:
    """Append to the record of a key, replacing the file as a whole.

    Returns:
        Why it could not be stored, or None.
    """
    kept = (*read_speeds(key), speed)[-_MOST_RUNS:]
    document = {
        "schema_version": _SCHEMA_VERSION,
        "key": asdict(key),
        "runs": [asdict(one) for one in kept],
    }
    try:
        replace_text(key.file(), json.dumps(document, indent=2) + "\n")
    except OSError as problem:
        return f"the measured speed could not be stored: {problem.strerror or problem}"
    return None
