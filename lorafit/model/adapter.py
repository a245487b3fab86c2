"""Adapters on disk: plain PEFT, checked when written and when read."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorafit.errors import AdapterError
from lorafit.files import sync_file, sync_folder
from lorafit.model.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, require_adapter
from lorafit.model.weights import read_tensors
from lorafit.text import excerpt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_MAX_RANK = 4096
# PEFT takes these names, or the keys of these tables, for regular expressions.
_PATTERN_KEYS = ("rank_pattern", "alpha_pattern", "layers_pattern", "exclude_modules")
# What lorafit follows of a stranger's configuration. Of the rest, some keys import modules by name
# (`megatron_core`), and others change the base model in ways that nothing here has checked.
_FOLLOWED = frozenset({
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias",
    "fan_in_fan_out", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "task_type",
    "lora_bias", "ensure_weight_tying",
})  # fmt: skip
# About the file itself, or where it came from: no part of the adapter.
_ABOUT = frozenset({
    "peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "auto_mapping", "megatron_core", "qalora_group_size", "runtime_config",
})  # fmt: skip
_PLAIN_NAME = re.compile(r"[\w.]+")


def write_adapter_config(model: "PeftModel", folder: Path) -> None:
    """Write the configuration that makes a plain PEFT adapter of weights that lie in `folder`.

    Names come sorted, where PEFT itself would write them in the order of a set: the same run writes
    the same bytes.
    """
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    plain = {
        name: sorted(value) if isinstance(value, set) else value for name, value in config.items()
    }
    (folder / CONFIG_FILE).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", "utf-8")


def save_adapter(model: "PeftModel", folder: Path) -> None:
    """Write the adapter as plain PEFT and verify it; replaces an adapter already there.

    Raises:
        AdapterError: what was written is not finite, or is all zero, so training did nothing.
    """
    staging = folder.with_name(f".staging-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    # Told so, PEFT does not ask the hub whether the vocabulary was resized.
    model.save_pretrained(staging, safe_serialization=True, save_embedding_layers=False)
    verify_adapter(staging)
    for path in staging.iterdir():
        sync_file(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)
    sync_folder(folder.parent)


def verify_adapter(folder: Path) -> dict[str, Any]:
    """Check an adapter folder and return its configuration.

    Raises:
        AdapterError: a file is missing or damaged, the configuration is not a LoRA adapter, or
            the weights are not finite or have no effect.
    """
    config = _read_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        raise AdapterError(
            "has only a pickle (adapter_model.bin), which can run code"
            if pickled
            else f"has no {WEIGHTS_FILE}",
            where=str(folder),
            hint="save the adapter again with safetensors" if pickled else "check --adapter",
        )
    names = [tensor["name"] for tensor in read_tensors(path, AdapterError)]
    if not names:
        raise AdapterError("holds no tensors", where=str(path))
    from safetensors.torch import load_file

    has_effect = False
    for name, tensor in load_file(path).items():
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{excerpt(name)} is not finite", where=str(path))
        # B starts at zero: while every B is zero, the adapter changes nothing.
        has_effect |= "lora_A" not in name and bool(tensor.count_nonzero())
    if not has_effect:
        raise AdapterError("every lora_B is zero, so the adapter has no effect", where=str(path))
    return config


def _read_config(folder: Path) -> dict[str, Any]:
    path = require_adapter(folder)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise AdapterError(f"is not JSON: {excerpt(str(problem))}", where=str(path)) from None
    _check_config(config, str(path))
    checked: dict[str, Any] = config
    return checked


def _check_config(config: Any, where: str) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"is not a LoRA adapter (peft_type {excerpt(repr(kind))})", where=where)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MAX_RANK:
        raise AdapterError(
            f"r is {excerpt(repr(rank))}; it must be a whole number of 1 to {_MAX_RANK}",
            where=where,
        )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e6:
        raise AdapterError(
            f"lora_alpha is {excerpt(repr(alpha))}; it must be a positive number", where=where
        )
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise AdapterError(
            f"target_modules is {excerpt(repr(targets))}; it must be a list of names "
            "(a pattern from a stranger's file is not evaluated)",
            where=where,
        )
    if config.get("auto_mapping"):
        raise AdapterError("asks to import code (auto_mapping); this is refused", where=where)
    for key in _PATTERN_KEYS:
        value = config.get(key)
        names = value if isinstance(value, list | tuple | dict) else [value] if value else ()
        if not all(isinstance(name, str) and _PLAIN_NAME.fullmatch(name) for name in names):
            raise AdapterError(
                f"{key} is {excerpt(repr(value))}; only plain module names are followed, as a "
                "pattern from a stranger's file is not evaluated",
                where=where,
            )


def load_adapter(base: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Put a verified adapter on a base model, every tensor in its place.

    Raises:
        AdapterError: as `verify_adapter`, or the adapter belongs to another model.
    """
    from peft import LoraConfig, PeftModel

    raw = verify_adapter(folder)
    unfollowed = set(LoraConfig.__dataclass_fields__) - _FOLLOWED - _ABOUT
    asked = sorted(key for key in unfollowed if raw.get(key))
    if asked:
        raise AdapterError(
            f"asks for {', '.join(asked)}, which lorafit does not follow: the adapter would act "
            "otherwise than its author meant",
            where=str(folder / CONFIG_FILE),
            hint="load it with PEFT itself, if you trust it",
        )
    try:
        config = LoraConfig(**{k: v for k, v in raw.items() if k in _FOLLOWED})
        config.inference_mode = True
        model = PeftModel(base, config)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # a value of a wrong kind fails wherever PEFT first uses it
        raise AdapterError(
            f"does not fit the base model: {excerpt(str(problem), 200)}",
            where=str(folder),
            hint="give the model it was trained on as --model: "
            f"{excerpt(str(raw.get('base_model_name_or_path')))}",
        ) from None
    _fill(model, folder)
    model.eval()
    return model


def _fill(model: "PeftModel", folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS_FILE)
    try:
        outcome = set_peft_model_state_dict(model, weights)
    except RuntimeError as problem:
        raise AdapterError(
            f"has other shapes than the base model: {excerpt(str(problem), 200)}", where=str(folder)
        ) from None
    absent = [name for name in outcome.missing_keys if "lora_" in name]
    surplus = list(outcome.unexpected_keys)
    if absent or surplus:
        first = (absent or surplus)[0]
        raise AdapterError(
            f"does not match its own configuration: {len(absent)} tensors are missing and "
            f"{len(surplus)} have no place, first {excerpt(first)}",
            where=str(folder),
        )
