import math

import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.errors import AdapterError
from lorafit.model.build import add_adapter, load_base
from lorafit.model.merge import log_probabilities, measure_drift, merge_adapter
from lorafit.model.source import locate_model

ROWS = [[5, 9, 30, 31], [7, 8, 9, 10, 11, 12]]


@pytest.fixture
def adapted(tiny_model, quiet_libraries):
    """Return a factory of PEFT models whose adapter has an effect."""

    def make(dtype=torch.float32, **options):
        settings = Settings(model=str(tiny_model(dtype=str(dtype)[6:])), lora_r=4, **options)
        base = load_base(settings, locate_model(settings.model), dtype, torch.device("cpu"))
        model, _ = add_adapter(base, settings)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        return model.eval()

    return make


def compare(model):
    before = log_probabilities(model, ROWS)
    with model.disable_adapter():
        alone = log_probabilities(model, ROWS)
    merged = merge_adapter(model)
    return measure_drift(before, alone, log_probabilities(merged, ROWS)), merged


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_a_merged_model_does_what_base_and_adapter_do(adapted, options):
    drift, merged = compare(adapted(**options))
    assert drift.num_tokens == 10
    assert drift.max_logit < 1e-4
    assert drift.divergence < 1e-7
    assert drift.adapter_effect > 1e-3
    assert drift.same_choice == 1.0
    assert drift.is_acceptable
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_a_sixteen_bit_weight_is_rounded_once(adapted):
    model = adapted(torch.bfloat16)
    layer = model.base_model.model.model.layers[0].mlp.fc1
    before = layer.get_base_layer().weight.detach().clone()
    delta = layer.get_delta_weight("default").detach().float()
    merged = merge_adapter(model)
    after = merged.model.layers[0].mlp.fc1.weight
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, (before.float() + delta).bfloat16())
    assert not torch.equal(after, before + delta.bfloat16())


def test_a_merge_that_lost_the_adapter_is_not_acceptable(adapted):
    model = adapted()
    together = log_probabilities(model, ROWS)
    with model.disable_adapter():
        alone = log_probabilities(model, ROWS)
    drift = measure_drift(together, alone, alone)
    assert drift.divergence == drift.adapter_effect
    assert drift.lost_share == 1.0
    assert not drift.is_acceptable


def test_divergence_is_that_of_a_hand_calculation():
    one, other = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1]]).log()
    drift = measure_drift([one], [other], [one])
    by_hand = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert drift.adapter_effect == pytest.approx(by_hand)
    assert drift.divergence == 0.0


def test_a_merge_that_is_not_finite_names_the_layer(adapted):
    model = adapted()
    layer = model.base_model.model.model.layers[1].self_attn.q_proj
    layer.lora_B["default"].weight.data[0, 0] = math.inf
    with pytest.raises(AdapterError, match=r"layers\.1\.self_attn\.q_proj it is not finite"):
        merge_adapter(model)
