"""Every custom gradient against the numbers, in float64."""

import itertools

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lorafit.model.lean.activations import Gelu, Silu, find_activation
from lorafit.model.lean.dropout import DropoutSeeds, dropped_sum, keep_mask
from lorafit.model.lean.linears import AdaptedLinear, adapted_linears
from lorafit.model.lean.norms import LayerNorm, RMSNorm, normalize
from lorafit.model.lean.prologues import Activated, Gated, Identity
from lorafit.model.lean.rotary import rotate


def numbers(*shape, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_(grad)


def layer_norm(size=6):
    module = nn.LayerNorm(size, dtype=torch.float64).requires_grad_(False)
    module.weight.data, module.bias.data = numbers(size, seed=1), numbers(size, seed=2)
    return module.requires_grad_(False)


def rms_norm(kind, size=6):
    module = kind(size).double()
    module.weight.data = numbers(size, seed=1)
    return module.requires_grad_(False)


NORMS = {
    "layer": (layer_norm, LayerNorm),
    "llama": (lambda: rms_norm(LlamaRMSNorm), lambda m: RMSNorm(m, m.variance_epsilon)),
    "gemma": (lambda: rms_norm(Gemma3RMSNorm), lambda m: RMSNorm(m, m.eps, offset=1.0)),
}


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_that_of_its_module_and_so_is_its_gradient(kind):
    make, wrap = NORMS[kind]
    module = make()
    inputs = numbers(2, 3, 6)
    got = normalize(inputs, wrap(module))
    # transformers' RMS norms compute in float32 whatever they are given.
    tolerance = 1e-12 if kind == "layer" else 1e-6
    torch.testing.assert_close(got, module(inputs).double(), rtol=tolerance, atol=tolerance)
    assert torch.autograd.gradcheck(lambda x: normalize(x, wrap(module)), (inputs,))


@pytest.mark.parametrize("width", [4, 8])
def test_a_rotation_is_that_of_transformers_and_is_taken_back_in_backward(width):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads = numbers(2, 5, 3, 8)  # [B, T, n, D]
    angles = numbers(2, 5, width // 2, seed=3, grad=False)
    cos, sin = (f(torch.cat((angles, angles), -1)) for f in (torch.cos, torch.sin))
    turned = heads[..., :width].transpose(1, 2)
    expected, _ = apply_rotary_pos_emb(turned, turned, cos, sin)
    expected = torch.cat((expected.transpose(1, 2), heads[..., width:]), -1)
    torch.testing.assert_close(rotate(heads, cos, sin), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (heads,))


@pytest.mark.parametrize(
    ("name", "expected"), [("gelu_new", Gelu), ("gelu_pytorch_tanh", Gelu), ("silu", Silu)]
)
def test_activations_of_transformers_are_known_and_equal(name, expected):
    from transformers.activations import ACT2FN

    module = ACT2FN[name]
    activation = find_activation(module)
    assert isinstance(activation, expected)
    inputs = numbers(4, 6)
    torch.testing.assert_close(activation(inputs), module(inputs), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(activation.forward(inputs), module(inputs), rtol=1e-9, atol=1e-9)
    (wanted,) = torch.autograd.grad(module(inputs).sum(), inputs)
    ones = torch.ones_like(inputs)
    torch.testing.assert_close(activation.backward(ones, inputs), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", [Gelu("tanh"), Gelu("none"), Silu()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_activation_is_as_exact_in_its_quickest_way(activation, dtype):
    inputs = torch.linspace(-40, 40, 4001, dtype=dtype)
    truth = activation(inputs.double())
    own, quick = (
        float((way(inputs).double() - truth).abs().max())
        for way in (activation, activation.forward)
    )
    # Both round to the number format, at numbers of up to 40.
    assert quick <= max(1.5 * own, 40 * torch.finfo(dtype).eps)
    assert torch.isfinite(activation.forward(torch.tensor([-1e5, 1e5], dtype=dtype))).all()


@pytest.mark.parametrize("activation", [Gelu("tanh"), Gelu("none"), Silu()])
def test_the_gradient_of_an_activation_may_take_the_place_of_the_given_one(activation):
    inputs, gradient = numbers(4, 6, grad=False), numbers(4, 6, seed=3, grad=False)
    expected = activation.backward(gradient, inputs)
    assert activation.backward(gradient, inputs, in_place=True) is gradient
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_gelu_and_its_derivative_come_together_on_a_cpu(monkeypatch, rows_at_once):
    monkeypatch.setattr("lorafit.model.lean.activations._CACHED", rows_at_once * 9)
    inputs = torch.linspace(-30, 30, 8 * 9, dtype=torch.float64).view(2, 4, 9).requires_grad_()
    value, slope = Gelu("tanh").with_slope(inputs.detach())
    expected = Gelu("tanh")(inputs)
    (wanted,) = torch.autograd.grad(expected.sum(), inputs)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-12)


def test_the_derivative_comes_alone_where_that_is_quicker_or_more_exact():
    inputs = torch.ones(2, 3)
    assert Gelu("none").with_slope(inputs) is None
    assert Gelu("tanh").with_slope(inputs.bfloat16()) is None
    assert Silu().with_slope(inputs) is None


def test_an_unknown_activation_is_left_alone():
    assert find_activation(nn.Hardswish()) is None


def lora_layer(inputs, outputs, *, dropout=0.0, seed=0):
    """Return PEFT's own LoRA layer around a Linear, in float64, with a B that is not zero."""
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    base = nn.Linear(inputs, outputs, dtype=torch.float64).requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=6, lora_dropout=dropout)
    layer = Linear(base, "default", config=config, r=2, lora_alpha=6).double()
    layer.lora_A["default"].weight.data = numbers(2, inputs, seed=seed + 1, grad=False)
    layer.lora_B["default"].weight.data = numbers(outputs, 2, seed=seed + 2, grad=False)
    return layer


PROLOGUES = {
    "identity": (Identity, 1),
    "norm": (lambda: LayerNorm(layer_norm()), 1),
    "rms": (lambda: RMSNorm(rms_norm(LlamaRMSNorm), 1e-6), 1),
    "activation": (lambda: Activated(Gelu("tanh")), 1),
    "gate": (lambda: Gated(Silu()), 2),
}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("prologue", PROLOGUES)
def test_products_behind_a_prologue_have_the_gradients_of_their_formula(prologue, dropout):
    make, num_inputs = PROLOGUES[prologue]
    # A target with an adapter, a frozen layer without one, and another target.
    modules = [lora_layer(6, 4, dropout=dropout), nn.Linear(6, 5), lora_layer(6, 3, seed=9)]
    modules[1].double().requires_grad_(False)
    linears = [AdaptedLinear(module.train()) for module in modules]
    inputs = [numbers(2, 3, 6, seed=20 + index) for index in range(num_inputs)]
    factors = [factor for layer in linears for factor in layer.factors]

    def products(*tensors):
        for factor, value in zip(factors, tensors[num_inputs:], strict=True):
            factor.data = value.data  # the check moves copies of the factors
        return adapted_linears(make(), linears, (7, 8, 9), *tensors[:num_inputs])

    def through_autograd(*tensors):
        from lorafit.model.lean.linears import _AdaptedLinears

        return _AdaptedLinears.apply(make(), linears, (7, 8, 9), num_inputs, *tensors)

    outputs = products(*inputs, *factors)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, 4), (2, 3, 5), (2, 3, 3)]
    leaves = [factor.detach().clone().requires_grad_() for factor in factors]
    assert torch.autograd.gradcheck(through_autograd, (*inputs, *leaves))


def test_without_dropout_a_product_is_that_of_peft():
    module = lora_layer(6, 4)
    inputs = numbers(2, 3, 6)
    (got,) = adapted_linears(Identity(), (AdaptedLinear(module),), (0,), inputs)
    torch.testing.assert_close(got, module(inputs), rtol=1e-12, atol=1e-12)


def test_dropout_keeps_its_share_and_takes_other_elements_for_every_target_and_pass():
    values = torch.zeros(400, 500)
    seeds = DropoutSeeds()
    seeds.draw()
    masks = [keep_mask(values, 0.05, seeds.seed(layer, place)) for layer, place in _PLACES]
    for mask in masks:
        # Four standard deviations of the share of 200,000 draws.
        assert float((~mask).float().mean()) == pytest.approx(0.05, abs=0.002)
    for first, second in itertools.pairwise(masks):
        together = float((~first & ~second).float().mean())
        assert together == pytest.approx(0.05**2, abs=0.0005)
    again = keep_mask(values, 0.05, seeds.seed(*_PLACES[0]))
    assert torch.equal(again, masks[0])
    seeds.draw()
    assert not torch.equal(keep_mask(values, 0.05, seeds.seed(*_PLACES[0])), masks[0])


_PLACES = [(0, 0), (0, 1), (1, 0), (31, 7)]


def test_the_mean_of_a_dropped_sum_is_the_sum():
    residual, branch = torch.ones(300, 400), torch.full((300, 400), 2.0)
    total = dropped_sum(residual, (branch, branch), 0.25, (1, 2))
    assert float(total.mean()) == pytest.approx(5.0, abs=0.03)
    assert total.unique().tolist() == pytest.approx([1.0, 1 + 2 / 0.75, 1 + 4 / 0.75])


def test_a_dropped_sum_has_the_gradient_of_its_masks():
    tensors = tuple(numbers(3, 4, 5, seed=seed) for seed in range(3))
    assert torch.autograd.gradcheck(
        lambda residual, *branches: dropped_sum(residual, branches, 0.3, (5, 6)), tensors
    )
