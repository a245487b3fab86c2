"""Configurations of well-known models, so that a plan or an estimate needs no download.

The files hold the facts of each model's published config.json that its shape depends on.
"""

import json
from importlib import resources
from typing import Any

# Published under several ids: instruction-tuned and re-uploaded weights have the same shape.
_SAME_SHAPE = {
    "google/gemma-3-270m-it": "google/gemma-3-270m",
    "google/gemma-3-1b": "google/gemma-3-1b-pt",
    "google/gemma-3-1b-it": "google/gemma-3-1b-pt",
    "google/gemma-3-4b": "google/gemma-3-4b-pt",
    "google/gemma-3-4b-it": "google/gemma-3-4b-pt",
    "meta-llama/Llama-3.2-1B-Instruct": "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-3B-Instruct": "meta-llama/Llama-3.2-3B",
    "meta-llama/Meta-Llama-3-8B-Instruct": "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B-Instruct": "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen2.5-0.5B-Instruct": "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-1.5B-Instruct": "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen2.5-3B-Instruct": "Qwen/Qwen2.5-3B",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B",
}


def bundled_models() -> tuple[str, ...]:
    """Return the hub ids of the models whose configuration comes with the package."""
    files = resources.files(__name__).iterdir()
    stems = (file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))
    return tuple(sorted(stem.replace("--", "/") for stem in stems))


def bundled_config(model_id: str) -> dict[str, Any] | None:
    """Return the configuration of a hub model, as in config.json; None for an unknown one."""
    known = {name.lower(): name for name in (*bundled_models(), *_SAME_SHAPE)}
    name = known.get(model_id.lower())
    if name is None:
        return None
    file = _SAME_SHAPE.get(name, name).replace("/", "--") + ".json"
    config: dict[str, Any] = json.loads(resources.files(__name__).joinpath(file).read_text("utf-8"))
    return config
