"""Models that read images too, trained on text: what is checkpointed are layers of the language."""

from typing import Any

import pytest
import torch
from test_trace import T4, make_settings

from lorafit.errors import ConfigError
from lorafit.memory.allocator import CachingAllocator
from lorafit.memory.architecture import read_architecture
from lorafit.memory.events import Category
from lorafit.memory.replay import replay
from lorafit.memory.trace import TraceRequest, trace_training
from lorafit.model import step
from lorafit.model.build import add_adapter, build_on_meta, checkpointable_layers, decoder_layers

pytestmark = pytest.mark.usefixtures("quiet_libraries")

NUM_LAYERS = 4


def make_config() -> Any:
    from transformers import Gemma3Config

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    language = {
        **shape,
        "vocab_size": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
    }
    vision = {**shape, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14}
    return Gemma3Config(text_config=language, vision_config=vision, mm_tokens_per_image=1)


def test_the_first_layers_of_the_language_are_checkpointed_not_those_of_the_images() -> None:
    settings = make_settings(gradient_checkpointing=True, checkpointed_layers=2)
    base = build_on_meta(settings, make_config(), torch.float32)
    model, _ = add_adapter(base, settings)
    layers = decoder_layers(model)
    assert [layer.gradient_checkpointing for layer in layers] == [True, True, False, False]
    assert len(layers) == read_architecture(make_config().to_dict()).num_layers
    assert len(checkpointable_layers(model)) == NUM_LAYERS + 3


def test_each_checkpointed_layer_spares_activations() -> None:
    peaks = []
    for count in (0, 2, NUM_LAYERS):
        settings = make_settings(
            gradient_checkpointing=count > 0, checkpointed_layers=count or None, max_length=64
        )
        traced = trace_training(TraceRequest(settings, make_config(), torch.float16, T4))
        parts = replay(traced, CachingAllocator()).bytes_at_peak
        peaks.append(parts[Category.ACTIVATION] + parts[Category.LOGITS])
    assert peaks[0] > peaks[1] > peaks[2]


def test_a_real_step_trains_on_text_alone() -> None:
    from transformers import AutoModelForCausalLM

    settings = make_settings(gradient_checkpointing=True, checkpointed_layers=2)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(make_config())
    model, _ = add_adapter(base, settings)
    ids = torch.randint(1, 96, (2, 16))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    step.micro_batch_loss(model, batch, 30).backward()  # type: ignore[no-untyped-call]  # torch's
    trained = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert all("language_model" in name for name in trained)
    places = {f".layers.{index}." for index in range(NUM_LAYERS)}
    assert all(any(place in name for name in trained) for place in places)


def test_lean_layers_of_the_language_compute_what_stock_ones_do() -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(1, 33).view(2, 16)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    losses = {}
    for kernels in ("lorafit", "stock"):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(make_config())
        settings = make_settings(kernels=kernels, gradient_checkpointing=False, lora_dropout=0.0)
        model, _ = add_adapter(base, settings)
        loss = step.micro_batch_loss(model, batch, 30)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        losses[kernels] = loss.detach(), gradients
    torch.testing.assert_close(losses["lorafit"][0], losses["stock"][0])
    torch.testing.assert_close(losses["lorafit"][1], losses["stock"][1], rtol=1e-4, atol=1e-6)


def test_no_adapter_is_put_where_text_does_not_go() -> None:
    from transformers import AutoModelForCausalLM

    settings = make_settings()
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(make_config())
    model, _ = add_adapter(base, settings)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("language_model" in name for name in trained)
    excluded = model.peft_config["default"].exclude_modules
    assert excluded
    assert all("vision" in name or "projector" in name for name in excluded)


def test_a_name_of_the_image_encoder_alone_is_no_target() -> None:
    base = build_on_meta(make_settings(), make_config(), torch.float32)
    with pytest.raises(ConfigError, match="'fc1' matches no Linear module"):
        add_adapter(base, make_settings(target_modules=("q_proj", "fc1")))
