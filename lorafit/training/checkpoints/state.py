"""Optimizer, schedule and random-number state as safetensors and JSON: resume unpickles nothing."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, load_file, save, save_file

from lorafit.training.checkpoints.layout import OPTIMIZER_FILES, RNG_FILES


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write an optimizer's state: tensors to safetensors, everything else to JSON."""
    save_optimizer_state(optimizer.state_dict(), folder)


def save_optimizer_state(state: Mapping[str, Any], folder: Path) -> None:
    """Write what an optimizer's `state_dict` returns; `load_optimizer` reads it."""
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                # A clone, as bitsandbytes shares its quantization maps between parameters and
                # safetensors refuses shared memory.
                tensors[f"{index}.{key}"] = value.detach().cpu().clone().contiguous()
            else:
                plain.setdefault(str(index), {})[key] = value
    save_file(tensors, folder / OPTIMIZER_FILES[0])
    document = {"param_groups": state["param_groups"], "plain": plain}
    (folder / OPTIMIZER_FILES[1]).write_text(json.dumps(document), encoding="utf-8")


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Restore what `save_optimizer` wrote."""
    document = json.loads((folder / OPTIMIZER_FILES[1]).read_text(encoding="utf-8"))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(folder / OPTIMIZER_FILES[0]).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    for index, entries in document["plain"].items():
        state.setdefault(int(index), {}).update(entries)
    optimizer.load_state_dict({"state": state, "param_groups": document["param_groups"]})


def save_plain(state: Mapping[str, Any], path: Path) -> None:
    """Write a state of numbers and strings only: a learning-rate schedule or a loss scaler."""
    path.write_text(json.dumps(dict(state)), encoding="utf-8")


def load_plain(path: Path) -> dict[str, Any]:
    """Return what `save_plain` wrote."""
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def save_rng(folder: Path) -> None:
    """Write the states of Python's, NumPy's and torch's generators."""
    (folder / RNG_FILES[1]).write_text(json.dumps(_plain_rng()), encoding="utf-8")
    save_file(_torch_rng(), folder / RNG_FILES[0])


def load_rng(folder: Path) -> None:
    """Restore what `save_rng` wrote."""
    document = json.loads((folder / RNG_FILES[1]).read_text(encoding="utf-8"))
    _set_rng(document, load_file(folder / RNG_FILES[0]))


_PLAIN = "plain"


def rng_bytes() -> bytes:
    """Return all that `save_rng` writes as the content of one safetensors file."""
    plain = torch.frombuffer(bytearray(json.dumps(_plain_rng()).encode()), dtype=torch.uint8)
    content: bytes = save({**_torch_rng(), _PLAIN: plain})
    return content


def set_rng_bytes(content: bytes) -> None:
    """Restore what `rng_bytes` returned."""
    tensors = load(content)
    plain = tensors.pop(_PLAIN)
    _set_rng(json.loads(plain.numpy().tobytes()), tensors)


def _plain_rng() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }


def _torch_rng() -> dict[str, torch.Tensor]:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    return tensors


def _set_rng(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    version, internal, gauss = document["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = document["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])


@dataclass(frozen=True)
class RandomState:
    """The generators that a forward pass draws from, to draw the same numbers again."""

    cpu: torch.Tensor
    cuda: torch.Tensor | None
    mps: torch.Tensor | None

    @classmethod
    def capture(cls) -> "RandomState":
        """Return the states as they are now."""
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        )

    def restore(self) -> None:
        """Set the generators back to these states."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)
