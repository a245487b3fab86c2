from typing import Any

import pytest

from lorafit.errors import ModelError
from lorafit.memory.architecture import read_architecture
from lorafit.model.architectures import bundled_config

# As the models' pages and files count them, tied embeddings once.
PARAMETERS = {
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/phi-1_5": 1_418_270_720,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-4b-pt": 4_300_079_472,
}
TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(("model", "count"), PARAMETERS.items())
def test_well_known_models_have_the_parameters_that_are_published(model: str, count: int) -> None:
    config = bundled_config(model)
    assert config is not None
    architecture = read_architecture(config)
    assert architecture.is_known
    assert architecture.num_parameters == count


@pytest.mark.usefixtures("quiet_libraries")
@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "phi"},
        {"model_type": "llama", "num_key_value_heads": 2},
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 16},
        {"model_type": "mistral", "num_key_value_heads": 2},
        {"model_type": "qwen2", "num_key_value_heads": 1, "tie_word_embeddings": True},
        {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
        {"model_type": "gemma3_text", "num_key_value_heads": 2, "head_dim": 16},
    ],
)
def test_arithmetic_counts_what_the_built_model_has(changes: dict[str, Any]) -> None:
    import torch

    from lorafit.config.schema import Settings
    from lorafit.memory.estimate import parse_config
    from lorafit.model.build import build_on_meta

    config = {**TINY, **changes}
    model = build_on_meta(Settings(), parse_config(config, "tiny"), torch.float32)
    assert read_architecture(config).num_parameters == model.num_parameters()


def test_names_of_older_configurations_are_read() -> None:
    config = {"model_type": "other", "vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4}
    architecture = read_architecture(config)
    assert not architecture.is_known
    assert (architecture.num_layers, architecture.head_dim) == (3, 8)
    assert architecture.intermediate_size == 128


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_missing_size_is_named(name: str) -> None:
    config = {"model_type": "llama", **TINY}
    del config[name]
    with pytest.raises(ModelError, match=f"names no {name}"):
        read_architecture(config)
