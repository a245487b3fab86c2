"""A checkpoint that transformers' Trainer wrote with PEFT, read without running anything of it.

The adapter comes from safetensors. `optimizer.pt`, `scheduler.pt` and `scaler.pt` are pickles, and
are read by PyTorch's restricted unpickler alone, which builds tensors, numbers, strings and
containers, and refuses everything else by name. `training_args.bin` and `rng_state.pth` are not
opened.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorafit.errors import AdapterError, CheckpointError
from lorafit.model.adapter import verify_adapter
from lorafit.model.adapter_folder import WEIGHTS_FILE
from lorafit.text import excerpt
from lorafit.training.checkpoints.layout import TRAINER_STATE

OPTIMIZER, SCHEDULER, SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAM_STATE = {"step", *MOMENTS}
_HINT = "name a checkpoint-N folder that transformers' Trainer wrote with a PEFT model"


@dataclass(frozen=True)
class HfCheckpoint:
    """What such a checkpoint holds."""

    folder: Path
    step: int
    """Optimizer steps that are done."""
    epoch: float
    """Passes over its data that they amount to."""
    total_steps: int | None
    micro_batch: int | None
    """Rows that a device took at once."""
    last_loss: float | None
    """The last loss that was logged."""
    adapter: Mapping[str, Any]
    """adapter_config.json, checked."""
    weights: Mapping[str, torch.Tensor]
    moments: tuple[Mapping[str, torch.Tensor], ...]
    """AdamW's state of every parameter, in the order of the optimizer's groups."""
    names: tuple[str, ...] | None
    """Names of these parameters; None where the optimizer was given none."""
    adam: Mapping[str, Any]
    """`betas`, `eps` and `weight_decay` of the first group that has parameters."""
    peak_rate: float | None
    next_rate: float | None
    """Learning rate of the next step, by its own schedule."""
    scaler: Mapping[str, float] | None
    """State of the loss scaler, where it trained in float16."""


def read_hf_checkpoint(folder: Path) -> HfCheckpoint:
    """Read a checkpoint of transformers' Trainer and PEFT.

    Raises:
        CheckpointError: a file is missing, damaged, of another kind, or would have to run code.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {excerpt(str(folder))}", hint=_HINT)
    counters = _read_counters(folder / TRAINER_STATE)
    try:
        adapter = verify_adapter(folder)
    except AdapterError as problem:
        raise CheckpointError(str(problem), hint=_HINT) from None
    moments, names, adam = _read_optimizer(folder / OPTIMIZER, counters["step"])
    return HfCheckpoint(
        folder=folder,
        **counters,
        adapter=adapter,
        weights=load_file(folder / WEIGHTS_FILE),
        moments=moments,
        names=names,
        adam=adam,
        **_read_schedule(folder / SCHEDULER, counters["step"]),
        scaler=_read_scaler(folder / SCALER),
    )


def load_plain_pickle(path: Path) -> Any:
    """Return what a `torch.save` file holds, if it is tensors, numbers, strings and containers.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it names anything else, which
            unpickling would have to import and call.
    """
    if not path.is_file():
        raise CheckpointError("is missing", where=str(path), hint=_HINT)
    try:
        with _torch_alone():
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as problem:
        raise CheckpointError(
            f"cannot be read: {problem.strerror or problem}", where=str(path)
        ) from None
    except Exception as problem:  # of a stranger's bytes, the reader raises whatever it meets
        text = str(problem)
        if "Unsupported" in text:
            asked = text[text.index("Unsupported") :].split(" was not an allowed")[0]
            raise CheckpointError(
                "holds more than tensors and numbers, and reading that would run code: "
                f"{excerpt(asked, 120)}",
                where=str(path),
                hint="nothing was run; do not load this file elsewhere unless you trust its author",
            ) from None
        reason = excerpt(text, 120) or type(problem).__name__
        raise CheckpointError(f"is damaged: {reason}", where=str(path)) from None


@contextlib.contextmanager
def _torch_alone() -> Iterator[None]:
    """Take back, for a while, what libraries have declared safe to unpickle beyond torch's own."""
    declared = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(declared)


def _read_counters(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError("is missing", where=str(path), hint=_HINT)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        step, epoch = document["global_step"], float(document.get("epoch") or 0.0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("is not the state of a Trainer", where=str(path)) from None
    if not _is_count(step) or not math.isfinite(epoch):
        raise CheckpointError(
            f"says global_step {excerpt(repr(step), 40)}, epoch {epoch:g}: no step was taken",
            where=str(path),
        )
    total, rows = document.get("max_steps"), document.get("train_batch_size")
    return {
        "step": step,
        "epoch": epoch,
        "total_steps": total if _is_count(total) else None,
        "micro_batch": rows if _is_count(rows) else None,
        "last_loss": _last_loss(document.get("log_history")),
    }


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53


def _last_loss(history: object) -> float | None:
    entries = history if isinstance(history, list) else []
    losses = [entry.get("loss") for entry in entries if isinstance(entry, dict)]
    found = [loss for loss in losses if isinstance(loss, int | float)]
    return float(found[-1]) if found and math.isfinite(found[-1]) else None


def _read_optimizer(
    path: Path, step: int
) -> tuple[tuple[dict[str, torch.Tensor], ...], tuple[str, ...] | None, dict[str, Any]]:
    content = load_plain_pickle(path)
    try:
        groups = [group for group in content["param_groups"] if group["params"]]
        entries = [dict(content["state"][index]) for group in groups for index in group["params"]]
        first = groups[0]
        adam = {
            "betas": [float(beta) for beta in first["betas"]],
            "eps": float(first["eps"]),
            "weight_decay": float(first["weight_decay"]),
        }
        named = [name for group in groups for name in group.get("param_names", ())]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise CheckpointError(
            "is not the state of AdamW with a step for every parameter",
            where=str(path),
            hint=_HINT,
        ) from None
    for number, entry in enumerate(entries):
        _check_moments(entry, number, step, path)
    names = tuple(str(name) for name in named) if len(named) == len(entries) else None
    return tuple(entries), names, adam


def _check_moments(entry: Mapping[str, Any], number: int, step: int, path: Path) -> None:
    where = f"{path}: parameter {number}"
    if entry.keys() != _ADAM_STATE:
        raise CheckpointError(
            f"has the state {excerpt(', '.join(map(str, entry)))}, and torch's AdamW keeps "
            f"{', '.join(sorted(_ADAM_STATE))}",
            where=where,
            hint="only the state of torch's AdamW can be taken over (--optim adamw_torch)",
        )
    if not all(_is_plain(entry[name]) for name in MOMENTS):
        raise CheckpointError("has moments that are no plain tensors of numbers", where=where)
    if not all(bool(torch.isfinite(entry[name]).all()) for name in MOMENTS):
        raise CheckpointError("has moments that are not finite", where=where)
    if bool((entry["exp_avg_sq"] < 0).any()):
        raise CheckpointError("has negative squares as its second moment", where=where)
    taken = entry["step"]
    is_number = _is_plain(taken, numel=1) or isinstance(taken, int | float)
    count = float(taken) if is_number else math.nan
    # A loss scaler skips steps, so that there may be fewer than the Trainer counts; never more.
    if not 1 <= count <= step:
        raise CheckpointError(f"took {count:g} steps, and the Trainer {step}", where=where)


def _is_plain(value: object, numel: int | None = None) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.dtype.is_floating_point
        and not value.is_meta
        and numel in (None, value.numel())
    )


def _read_schedule(path: Path, step: int) -> dict[str, Any]:
    content = load_plain_pickle(path)
    try:
        reached = content["last_epoch"]
        peak, following = float(content["base_lrs"][0]), float(content["_last_lr"][0])
    except (KeyError, TypeError, ValueError, IndexError):
        # A schedule of another kind: its rates are not known, and this run has its own.
        return {"peak_rate": None, "next_rate": None}
    if reached != step:
        raise CheckpointError(
            f"stands at step {excerpt(repr(reached), 40)}, and the Trainer at {step}: they are of "
            "different moments",
            where=str(path),
        )
    return {"peak_rate": peak, "next_rate": following}


_SCALER_KEYS = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def _read_scaler(path: Path) -> dict[str, float] | None:
    if not path.is_file():
        return None
    content = load_plain_pickle(path)
    try:
        found = {name: content[name] for name in _SCALER_KEYS}
    except (KeyError, TypeError):
        found = {}
    if not found or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in found.values()
    ):
        raise CheckpointError("is not the state of a loss scaler", where=str(path))
    return found
