import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, ExitCode
from lorafit.model.build import add_adapter, load_base, summarize_model
from lorafit.model.lora import DEFAULT_TARGETS, choose_targets, linear_names
from lorafit.model.source import locate_model
from lorafit.model.step import make_optimizer, training_step

pytestmark = pytest.mark.usefixtures("quiet_libraries")
CPU = torch.device("cpu")
ARCHITECTURES = ("phi", "llama", "mistral", "gemma3", "qwen2")


@pytest.fixture
def load(tiny_model):
    """Load a tiny base model, as a run does."""

    def load(architecture="phi", dtype=torch.float32, stored="float32", **settings):
        source = locate_model(str(tiny_model(architecture, dtype=stored)))
        return load_base(Settings(model="tiny", **settings), source, dtype, CPU)

    return load


def rows(count=2, length=12, seed=0):
    ids = torch.randint(1, 300, (count, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def train(model, settings, steps=2):
    optimizer = make_optimizer(model, settings)
    return [
        float(training_step(model, optimizer, [rows(seed=0)], 22, settings).loss)
        for _ in range(steps)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_default_targets_are_exactly_the_linear_modules_and_all_of_them_learn(load, architecture):
    settings = Settings(learning_rate=1e-2, lora_dropout=0.0)
    base = load(architecture)
    assert set(linear_names(base)) == set(DEFAULT_TARGETS[base.config.model_type])
    model, targets = add_adapter(base, settings)
    assert targets.reason == f"all Linear modules of a {base.config.model_type} layer"
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, settings)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n in before if ".lora_" in n}
    for name in targets.names:
        assert sum(f".{name}.lora_B" in n for n in changed) == base.config.num_hidden_layers


def test_an_unknown_architecture_gets_every_linear_module_and_says_so(load):
    targets = choose_targets(load(), "brand-new", None)
    assert set(targets.names) == set(DEFAULT_TARGETS["phi"])
    assert targets.reason == "every Linear module found: brand-new has no entry of its own"


@pytest.mark.row("B30")
@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("Wqkv", "write q_proj,k_proj,v_proj instead of Wqkv"),
        ("out_proj", "write dense instead of out_proj"),
        ("q_porj", "write q_proj instead of q_porj"),
        ("(.*", None),
    ],
)
def test_b30_a_target_that_matches_nothing_is_named_with_the_real_ones(load, wrong, hint):
    with pytest.raises(ConfigError) as caught:
        add_adapter(load(), Settings(target_modules=("fc1", wrong)))
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert f"{wrong!r} matches no Linear module of this phi model" in str(caught.value)
    assert "there are: q_proj, k_proj, v_proj, dense, fc1, fc2" in str(caught.value)
    assert "'fc1' matches" not in str(caught.value)
    assert caught.value.hint == hint


def test_a_module_to_save_that_does_not_exist_is_refused(load):
    with pytest.raises(ConfigError, match="the model has no module named 'lm_haed'"):
        add_adapter(load(), Settings(modules_to_save=("lm_haed",)))


def test_adapters_are_fp32_masters_on_a_frozen_bf16_base(load):
    settings = Settings(learning_rate=1e-2)
    base = load(dtype=torch.bfloat16, stored="bfloat16")
    model, _ = add_adapter(base, settings)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    losses = train(model, settings, steps=4)
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert parameter.grad is None
            assert torch.equal(parameter, frozen[name]), name


def test_the_adapter_is_decided_by_the_seed_alone(load):
    def weights(seed):
        torch.rand(7)  # whatever was drawn before must not matter
        model, _ = add_adapter(load(), Settings(seed=seed))
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_summary_counts_what_the_real_model_has(load, tiny_model, architecture):
    settings = Settings(lora_r=4, modules_to_save=("lm_head",) if architecture == "phi" else ())
    summary = summarize_model(settings, locate_model(str(tiny_model(architecture))))
    base = load(architecture)
    assert summary.num_parameters == base.num_parameters()
    model, targets = add_adapter(base, settings)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert summary.num_trainable_parameters == trained
    assert sum(summary.trainable_by_module.values()) == trained
    assert summary.targets == targets


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("architecture", ["phi", "llama"])
def test_a_quantized_base_trains_on_the_cpu(load, quantization, architecture):
    settings = Settings(quantization=quantization, learning_rate=1e-2, lora_dropout=0.0)
    base = load(architecture, torch.bfloat16, quantization=quantization)
    kind = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    inner = {n.rpartition(".")[2] for n, m in base.named_modules() if type(m).__name__ == kind}
    assert inner >= set(DEFAULT_TARGETS[architecture])
    model, _ = add_adapter(base, settings)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    losses = train(model, settings, steps=3)
    assert losses[-1] < losses[0]


def test_checkpointing_changes_memory_and_never_numbers(load):
    def losses(is_on):
        settings = Settings(gradient_checkpointing=is_on, learning_rate=1e-2)
        model, _ = add_adapter(load(), settings)
        assert model.base_model.model.is_gradient_checkpointing is is_on
        torch.manual_seed(3)
        return train(model, settings, steps=3)

    assert losses(True) == losses(False)


def test_rslora_and_dora_reach_peft(load):
    settings = Settings(use_rslora=True, use_dora=True, lora_r=4, lora_alpha=6.5)
    model, _ = add_adapter(load(), settings)
    config = model.peft_config["default"]
    assert (config.use_rslora, config.use_dora, config.r, config.lora_alpha) == (True, True, 4, 6.5)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(6.5 / 4**0.5)
