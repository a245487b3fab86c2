"""Whole models: lean layers compute what transformers and PEFT compute."""

import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.model.lean.install import choose_lean_layers

ARCHITECTURES = ["phi", "llama", "mistral", "gemma3", "qwen2"]


def distance(one, other):
    """Return the relative distance of two sets of gradients."""
    assert one.keys() == other.keys()
    assert one
    missed = sum(float((one[n].double() - other[n].double()).square().sum()) for n in one)
    return (missed / sum(float(one[n].double().square().sum()) for n in one)) ** 0.5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_stock(adapted, gradients, architecture, checkpointing):
    expected = gradients(adapted(architecture, kernels="stock"))
    got = gradients(adapted(architecture, gradient_checkpointing=checkpointing))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    assert distance(expected[1], got[1]) < 2e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_bfloat16_gradients_are_as_near_to_the_truth_as_those_of_stock(
    adapted, gradients, architecture
):
    stock = adapted(architecture, kernels="stock", dtype=torch.bfloat16)
    truth = adapted(architecture, kernels="stock", dtype=torch.float64)
    truth.load_state_dict({name: value.double() for name, value in stock.state_dict().items()})
    lean = adapted(architecture, dtype=torch.bfloat16)
    missed = {"stock": 0.0, "lean": 0.0}
    for seed in range(10):
        _, expected = gradients(truth, seed)
        missed["stock"] += distance(expected, gradients(stock, seed)[1])
        missed["lean"] += distance(expected, gradients(lean, seed)[1])
    # Rounding is chance: the two differ by a tenth in either direction, with the architecture.
    assert missed["lean"] < 1.15 * missed["stock"], missed


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_layer_computes_only_what_the_loss_reads(
    adapted, gradients, architecture, checkpointing
):
    model = adapted(architecture, gradient_checkpointing=checkpointing)
    decoder = model.get_base_model().model
    norm = getattr(decoder, "norm", None) or decoder.final_layernorm
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    got = gradients(model, prompt=16)
    expected = gradients(adapted(architecture, kernels="stock"), prompt=16)
    assert seen == [(1, 8 + 2 + 8)]
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    assert distance(expected[1], got[1]) < 2e-5


def test_the_last_layer_computes_all_tokens_where_nearly_all_are_read(adapted, gradients):
    model = adapted()
    seen = []
    norm = model.get_base_model().model.final_layernorm
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    gradients(model)
    assert seen == [(3, 24)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_micro_batch_without_any_target_has_no_loss_and_no_gradient(
    adapted, gradients, architecture
):
    loss, found = gradients(adapted(architecture), prompt=24)
    assert loss == 0
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("architecture", ["phi", "llama"])
def test_dropout_is_the_same_when_a_layer_is_computed_again(adapted, gradients, architecture):
    shape = {"resid_pdrop": 0.2} if architecture == "phi" else {}
    found = []
    for checkpointing in (False, True):
        model = adapted(
            architecture, shape=shape, lora_dropout=0.3, gradient_checkpointing=checkpointing
        )
        torch.manual_seed(5)
        found.append(gradients(model))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])
    torch.manual_seed(6)
    assert gradients(model)[0] != found[1][0]


def test_evaluation_is_without_dropout(adapted):
    model = adapted(lora_dropout=0.5, shape={"resid_pdrop": 0.5}).eval()
    ids = torch.arange(3, 19).view(2, 8)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_with_a_cache_writes_what_stock_writes(adapted, architecture):
    ids = torch.arange(3, 13).view(1, 10)
    written = [
        adapted(architecture, kernels=kernels)
        .eval()
        .generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
        for kernels in ("stock", "lorafit")
    ]
    assert torch.equal(*written)


def test_an_adapter_that_is_off_or_merged_is_not_added(adapted):
    model = adapted().eval()
    ids = torch.arange(3, 13).view(1, 10)
    with torch.no_grad():
        with_adapter = model(input_ids=ids).logits
        with model.disable_adapter():
            without = model(input_ids=ids).logits
        model.merge_adapter()
        merged = model(input_ids=ids).logits
    assert (with_adapter - without).abs().max() > 1e-3
    torch.testing.assert_close(merged, with_adapter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("architecture", ["phi", "llama"])
def test_over_quantized_weights_gradients_are_those_of_stock(
    tiny_model, gradients, architecture, quantization
):
    from lorafit.model.build import add_adapter, load_base
    from lorafit.model.source import locate_model

    shape = {"resid_pdrop": 0.0} if architecture == "phi" else {}
    # Wide enough for bitsandbytes' blocks of 64 to be several a row.
    folder = tiny_model(architecture, hidden_size=64, intermediate_size=128, **shape)
    found = []
    for kernels in ("stock", "lorafit"):
        settings = Settings(
            model=str(folder),
            kernels=kernels,
            quantization=quantization,
            lora_dropout=0.0,
            gradient_checkpointing=False,
        )
        source = locate_model(str(folder))
        base = load_base(settings, source, torch.float32, torch.device("cpu"))
        model, _ = add_adapter(base, settings)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator).mul(0.02)
        found.append(gradients(model))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=0)
    assert distance(found[0][1], found[1][1]) < (1e-4 if quantization == "nf4" else 2e-2)


def saved_bytes(model, run):
    """Return the bytes of distinct storages that backward keeps, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(model)
    return sum(size for size, _ in kept.values())


def test_a_phi_layer_keeps_a_third_of_what_stock_keeps(adapted, gradients):
    shape = {"num_hidden_layers": 4, "resid_pdrop": 0.1}
    options = {"shape": shape, "dtype": torch.bfloat16, "lora_dropout": 0.05}
    stock = saved_bytes(adapted(kernels="stock", **options), gradients)
    lean = saved_bytes(adapted(**options), gradients)
    assert lean < stock / 3


def test_an_unknown_architecture_gets_lean_adapters_and_says_so(gradients):
    from transformers import AutoModelForCausalLM, StableLmConfig

    from lorafit.model.build import add_adapter
    from tests.tiny import _SHAPE

    found = []
    for kernels in ("stock", "lorafit"):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(StableLmConfig(**_SHAPE, vocab_size=320))
        settings = Settings(kernels=kernels, lora_dropout=0.0, gradient_checkpointing=False)
        model, _ = add_adapter(base, settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.01)
        found.append(gradients(model))
    choice = choose_lean_layers(base, settings)
    assert not choice.value
    assert "stablelm has no entry" in choice.reason
    assert any(hasattr(module, "lean") for module in model.modules())
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=0)
    assert distance(found[0][1], found[1][1]) < 2e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"kernels": "stock"}, "stock"), ({"use_dora": True}, "use_dora")],
)
def test_what_the_lean_layers_cannot_do_stays_stock_and_says_why(adapted, settings, words):
    model = adapted(**settings)
    chosen = Settings(**{"lora_dropout": 0.0, **settings})
    choice = choose_lean_layers(model.get_base_model(), chosen)
    assert not choice.value
    assert words in choice.reason
    assert not any(hasattr(module, "lean") for module in model.modules())


def test_compiled_layers_give_the_same_gradients(adapted, gradients):
    expected = gradients(adapted())
    torch._dynamo.reset()
    model = adapted()
    model.get_base_model().model.compile(backend="aot_eager")
    got = gradients(model)
    torch._dynamo.reset()
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=0)
    assert distance(expected[1], got[1]) < 2e-5


def test_training_curves_of_both_kernels_are_one_over_200_steps(adapted):
    from lorafit.model.loss import locate_targets
    from lorafit.model.step import make_optimizer, training_step

    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(3, 60, (2, 2, 12), generator=generator)
    curves = []
    for kernels in ("stock", "lorafit"):
        model = adapted(kernels=kernels, lora_alpha=4)
        settings = Settings(kernels=kernels, learning_rate=2e-3)
        optimizer = make_optimizer(model, settings)
        losses = []
        for step in range(200):
            ids = rows[step % len(rows)]
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            if kernels == "lorafit":
                batch |= locate_targets(ids, -100)
            losses.append(float(training_step(model, optimizer, [batch], 22, settings).loss))
        curves.append(losses)
    assert curves[0][-1] < 0.95 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
