"""Optimizer, schedule and random-number state as safetensors and JSON: resume unpickles nothing."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ADAPTER_WEIGHTS = "adapter_model.safetensors"
OPTIMIZER_FILES = ("optimizer.safetensors", "optimizer.json")
SCHEDULER_FILE = "scheduler.json"
SCALER_FILE = "scaler.json"
RNG_FILES = ("rng.safetensors", "rng.json")
TRAINER_STATE = "trainer_state.json"

STATE_FILES = (ADAPTER_WEIGHTS, *OPTIMIZER_FILES, SCHEDULER_FILE, *RNG_FILES, TRAINER_STATE)
"""What every checkpoint holds; with float16 there is also `SCALER_FILE`."""


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write an optimizer's state: tensors to safetensors, everything else to JSON."""
    state = optimizer.state_dict()
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
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    document = {
        "python": [version, list(internal), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
    }
    (folder / RNG_FILES[1]).write_text(json.dumps(document), encoding="utf-8")
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    save_file(tensors, folder / RNG_FILES[0])


def load_rng(folder: Path) -> None:
    """Restore what `save_rng` wrote."""
    document = json.loads((folder / RNG_FILES[1]).read_text(encoding="utf-8"))
    version, internal, gauss = document["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = document["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    tensors = load_file(folder / RNG_FILES[0])
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    if "mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["mps"])
