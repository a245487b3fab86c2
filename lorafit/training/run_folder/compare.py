"""Two checkpoints side by side: what differs, and by how much."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorafit.training.checkpoints import layout
from lorafit.training.checkpoints.checkpoint import Checkpoint, verify_checkpoint
from lorafit.training.run_folder.fingerprint import differences
from lorafit.training.run_folder.folder import read_run
from lorafit.training.run_folder.output import is_run


@dataclass(frozen=True)
class TensorDifference:
    """How far one tensor is from another."""

    name: str
    max_difference: float
    """Largest absolute difference of an element."""
    relative_norm: float
    """Norm of the difference over the norm of the first."""


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints, compared part by part."""

    first: Checkpoint
    second: Checkpoint
    equal_files: tuple[str, ...]
    """Files with the same bytes."""
    different_files: tuple[str, ...]
    """Files that differ, or that only one of the two has."""
    num_tensors: int
    tensors: tuple[TensorDifference, ...]
    """Adapter tensors that differ, largest first; shapes that do not match count as infinite."""
    learning_rates: tuple[float | None, float | None]
    settings: dict[str, tuple[Any, Any]]
    """What the fingerprints of the two runs differ in; empty for checkpoints of one run."""

    @property
    def is_equal(self) -> bool:
        """Whether adapter, optimizer, schedule and random state are the same, bit for bit."""
        return not self.different_files

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "first": str(self.first.folder),
            "second": str(self.second.folder),
            "equal": self.is_equal,
            "steps": [self.first.step, self.second.step],
            "learning_rates": list(self.learning_rates),
            "losses": [one.facts.get("loss") for one in (self.first, self.second)],
            "validation_losses": [one.validation_loss for one in (self.first, self.second)],
            "equal_files": list(self.equal_files),
            "different_files": list(self.different_files),
            "num_tensors": self.num_tensors,
            "tensors": [asdict(one) for one in self.tensors],
            "settings": {name: list(values) for name, values in self.settings.items()},
        }


def compare_checkpoints(first: Path, second: Path) -> Comparison:
    """Compare two checkpoints, after verifying both.

    Raises:
        CheckpointError: one of them is damaged.
    """
    one, other = verify_checkpoint(first), verify_checkpoint(second)
    names = sorted(one.files.keys() | other.files.keys())
    equal = [name for name in names if _digest(one, name) == _digest(other, name)]
    num_tensors, tensors = _compare_tensors(first, second)
    return Comparison(
        first=one,
        second=other,
        equal_files=tuple(equal),
        different_files=tuple(name for name in names if name not in equal),
        num_tensors=num_tensors,
        tensors=tuple(tensors),
        learning_rates=(_learning_rate(first), _learning_rate(second)),
        settings=_compare_runs(first.parent, second.parent),
    )


def _digest(checkpoint: Checkpoint, name: str) -> Any:
    return checkpoint.files.get(name, {}).get("sha256", checkpoint.folder)


def _compare_tensors(first: Path, second: Path) -> tuple[int, list[TensorDifference]]:
    left, right = (_adapter(folder) for folder in (first, second))
    found = []
    for name in left.keys() | right.keys():
        a, b = left.get(name), right.get(name)
        if a is None or b is None or a.shape != b.shape:
            found.append(TensorDifference(name, float("inf"), float("inf")))
        elif not torch.equal(a, b):
            gap = (a - b).float()
            norm = float(a.float().norm())
            share = float(gap.norm()) / norm if norm else float("inf")
            found.append(TensorDifference(name, float(gap.abs().max()), share))
    return len(left), sorted(found, key=lambda one: (-one.relative_norm, one.name))


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / layout.ADAPTER_WEIGHTS
    return load_file(path) if path.is_file() else {}


def _learning_rate(folder: Path) -> float | None:
    try:
        saved = json.loads((folder / layout.SCHEDULER_FILE).read_text(encoding="utf-8"))
        return float(saved["_last_lr"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def _compare_runs(first: Path, second: Path) -> dict[str, tuple[Any, Any]]:
    if first.resolve() == second.resolve() or not (is_run(first) and is_run(second)):
        return {}
    return differences(read_run(first)["fingerprint"], read_run(second)["fingerprint"])
