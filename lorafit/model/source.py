"""Where a base model comes from: a local folder, or the hub, brought into a local folder first.

Whatever the source, everything is checked before any weight is read: only safetensors, no code,
a causal language model of sane size, and files that are what their names say.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import ModelError
from lorafit.model.libraries import quick_imports
from lorafit.model.weights import WeightFiles, read_weight_files
from lorafit.text import excerpt, nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CODE_KEYS = ("auto_map", "_attn_implementation_internal", "trust_remote_code")
# A name with a slash is a kernel on the hub, which is a program.
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation")
_BOUNDS = {
    "hidden_size": (1, 131_072),
    "num_hidden_layers": (1, 1_000),
    "num_attention_heads": (1, 4_096),
    "vocab_size": (1, 4_000_000),
    "intermediate_size": (1, 1_000_000),
    "num_key_value_heads": (1, 4_096),
}
_SHARES = ("attention_dropout", "embd_pdrop", "resid_pdrop", "hidden_dropout")


@dataclass(frozen=True)
class ModelSource:
    """A base model on this disk, checked."""

    name: str
    """The id or path that was asked for."""
    path: Path
    """The folder with config.json, tokenizer and safetensors."""
    revision: str | None
    """The hub commit, where known."""
    config: dict[str, Any]
    """config.json as it stands."""
    weights: WeightFiles | None
    """The safetensors files; None when only the configuration was asked for."""

    @property
    def model_type(self) -> str:
        """The architecture, such as `phi` or `llama`."""
        return str(self.config["model_type"])


def locate_model(
    name: str, revision: str | None = None, *, need_weights: bool = True
) -> ModelSource:
    """Find the model folder, downloading it from the hub if it is not local, and check it.

    Raises:
        ModelError: the folder or hub model does not exist, cannot be reached, or is not a
            causal language model with safetensors weights and no code of its own.
    """
    if _looks_like_path(name):
        path = Path(name).expanduser()
        _require_folder(path)
        commit = None
    else:
        from lorafit.model.hub import Needs, download_model

        needs: Needs = "weights" if need_weights else "tokenizer"
        path, commit = download_model(name, revision, needs=needs)
    config = _read_config(path)
    _refuse_code(config, path)
    _refuse_unsuitable(config, path)
    weights = read_weight_files(path) if need_weights else None
    return ModelSource(name=name, path=path, revision=commit, config=config, weights=weights)


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~")) or Path(name).exists() or _HUB_ID.fullmatch(name) is None
    )


def _require_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.exists():
        raise ModelError(
            f"{path} is a file; a model is a folder with config.json and safetensors",
            hint=f"name the folder: --model {path.parent}",
        )
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, siblings)
    raise ModelError(
        f"there is no model folder {excerpt(str(path))}",
        hint=f"did you mean {path.parent / near}?" if near else "check --model",
    )


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{path} holds a LoRA adapter, not a base model",
                hint="give it as --adapter, and the model it was trained on as --model",
            )
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ModelError(
            f"{path} has no config.json (found: {excerpt(found)})",
            hint="a model folder holds config.json, tokenizer.json and model.safetensors",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"is not JSON: {excerpt(str(problem))}", where=str(file)) from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            "names no model_type, so the architecture is unknown",
            where=str(file),
            hint="download the model again; its config.json is incomplete",
        )
    return config


def _refuse_code(config: dict[str, Any], path: Path) -> None:
    asked = _code_asked_for(config)
    if asked:
        raise ModelError(
            f"this model asks to run code of its own ({excerpt(', '.join(asked))})",
            where=str(path / "config.json"),
            hint="lorafit runs no code from a model; use a version of it for plain transformers",
        )


def _code_asked_for(config: dict[str, Any]) -> list[str]:
    """Return what in a configuration, or in one inside of it, would make transformers run code."""
    asked = [key for key in _CODE_KEYS if config.get(key)]
    for key in _ATTENTION_KEYS:
        attention = config.get(key)
        named = attention.values() if isinstance(attention, dict) else [attention]
        asked += [f"{key}={name}" for name in named if isinstance(name, str) and "/" in name]
    for part in config.values():
        if isinstance(part, dict):
            asked += _code_asked_for(part)
    return asked


def _refuse_unsuitable(config: dict[str, Any], path: Path) -> None:
    where = str(path / "config.json")
    if config.get("quantization_config"):
        quantized = config["quantization_config"]
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "?"
        raise ModelError(
            f"these weights are already quantized ({excerpt(str(method))})",
            where=where,
            hint="use the original model with --quantization nf4 or int8",
        )
    with quick_imports():
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config["model_type"]
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{excerpt(repr(model_type))} is not a causal language model that transformers knows",
            where=where,
            hint="lorafit trains decoder models such as phi, llama, mistral, gemma3 and qwen2",
        )
    for key, (low, high) in _BOUNDS.items():
        value = config.get(key)
        if value is None or (isinstance(value, list) and key == "intermediate_size"):
            continue  # Gemma 3n has a list, one size a layer
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ModelError(
                f"{key} is {excerpt(repr(value))}; it must be a whole number of {low} to {high:,}",
                where=where,
            )
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and groups and heads % groups:
        raise ModelError(
            f"num_key_value_heads is {groups}, which does not divide the {heads} attention heads",
            where=where,
        )
    for key in _SHARES:
        share = config.get(key, 0.0)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ModelError(
                f"{key} is {excerpt(repr(share))}; it must be a number from 0 to below 1",
                where=where,
            )


def read_config(source: ModelSource) -> "PretrainedConfig":
    """Return the transformers configuration of a located model.

    Raises:
        ModelError: transformers does not accept it.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as problem:  # config classes raise their own validation errors
        raise ModelError(
            f"transformers does not accept it: {excerpt(str(problem), 300)}",
            where=str(source.path / "config.json"),
        ) from None
    return config
