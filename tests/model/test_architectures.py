import pytest

from lorafit.model.architectures import bundled_config, bundled_models

pytestmark = pytest.mark.usefixtures("quiet_libraries")

# What the hub shows for each model's safetensors, tied weights counted once.
PUBLISHED_PARAMETERS = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-4b-pt": 4_300_079_472,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/phi-2": 2_779_683_840,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
}


def test_every_bundled_model_has_its_published_size_on_record() -> None:
    assert set(bundled_models()) == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_model_built_from_the_bundled_configuration_has_the_published_size(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from lorafit.memory.estimate import parse_config

    config = bundled_config(name)
    assert config is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(parse_config(config, name))
    assert model.num_parameters() == PUBLISHED_PARAMETERS[name]


def test_instruction_tuned_models_share_the_shape_of_their_base() -> None:
    assert bundled_config("google/gemma-3-1b-it") == bundled_config("google/gemma-3-1b-pt")


def test_ids_are_found_whatever_their_case_and_unknown_ones_are_not() -> None:
    assert bundled_config("Microsoft/Phi-2") == bundled_config("microsoft/phi-2")
    assert bundled_config("nobody/nothing") is None
