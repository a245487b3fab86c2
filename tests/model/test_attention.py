"""Rows laid end to end compute what each computes alone: no row sees its neighbours."""

import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator, EndToEndCollator
from lorafit.errors import ConfigError
from lorafit.hardware.info import Choice
from lorafit.model.attention import choose_block_attention
from lorafit.model.build import add_adapter, attention_name, load_base
from lorafit.model.source import locate_model, read_config
from lorafit.model.step import micro_batch_loss

pytestmark = pytest.mark.usefixtures("quiet_libraries")

ARCHITECTURES = {
    "phi": {"resid_pdrop": 0.0},
    "llama": {},
    "mistral": {"sliding_window": 5},
    "gemma3": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
}
LENGTHS = (9, 3, 17, 2, 9)
LOSS = Choice(True, "chunked")


def make_rows(seed=0, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(2, 300, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return rows


def end_to_end(rows, **options):
    return EndToEndCollator(0, longest=32, by_document=True, **options)(rows)


@pytest.fixture(params=ARCHITECTURES)
def model(request, tiny_model):
    return build(tiny_model, request.param)


def build(tiny_model, architecture, **options):
    settings = Settings(
        **{"gradient_checkpointing": False, **options}, lora_dropout=0.0,
        target_modules=("q_proj", "k_proj", "v_proj"),
    )  # fmt: skip
    source = locate_model(str(tiny_model(architecture, **ARCHITECTURES[architecture])))
    base = load_base(settings, source, torch.float32, torch.device("cpu"))
    model = add_adapter(base, settings)[0]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model


def loss_and_gradients(model, batch, num_targets=1):
    """Return the summed loss and the gradients of the adapter."""
    model.zero_grad()
    loss = micro_batch_loss(model, batch, num_targets)
    loss.backward()
    return float(loss.detach()), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }


def assert_close(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = value.abs().max()
        assert scale > 0, name
        assert (value - other[name]).abs().max() <= tolerance * scale, name


def test_rows_end_to_end_have_the_loss_and_gradients_of_padded_rows(model):
    rows = make_rows()
    loss, gradients = loss_and_gradients(model, end_to_end(rows))
    padded, expected = loss_and_gradients(model, Collator(0, 8, locate_targets=True)(rows))
    assert loss == pytest.approx(padded, rel=1e-6)
    assert_close(expected, gradients, 5e-6)


def test_a_rows_loss_and_gradients_are_those_of_the_row_alone(model):
    rows = make_rows()
    alone = [loss_and_gradients(model, Collator(0, locate_targets=True)([row])) for row in rows]
    total = sum(loss for loss, _ in alone)
    summed = {name: sum(grads[name] for _, grads in alone) for name in alone[0][1]}
    loss, gradients = loss_and_gradients(model, end_to_end(rows, pad_to_multiple_of=16))
    assert loss == pytest.approx(total, rel=1e-6)
    assert_close(summed, gradients, 5e-6)


def test_other_neighbours_change_nothing_for_a_row(model):
    rows, others = make_rows(), make_rows(seed=5)

    outcomes = []
    for neighbours in (rows, others):
        batch = end_to_end([*neighbours[:2], rows[2], neighbours[3]])
        # The neighbours are read whole, but the loss is that of the third row alone.
        first, last = batch["cu_seq_lens_q"][2:4]
        own = (batch["target_positions"] >= first) & (batch["target_positions"] < last)
        for name in ("target_positions", "targets"):
            batch[name] = batch[name][own]
        outcomes.append(loss_and_gradients(model, batch))
    (first, first_gradients), (second, second_gradients) = outcomes
    assert first == second
    for name, value in first_gradients.items():
        assert torch.equal(value, second_gradients[name]), name


def test_a_mask_of_all_tokens_would_leak(model):
    # The check that the checks above can fail: one causal document instead of five.
    batch = end_to_end(make_rows())
    whole = {**batch, "document_lengths": (batch["input_ids"].numel(),)}
    loss, gradients = loss_and_gradients(model, batch)
    leaking, others = loss_and_gradients(model, whole)
    assert abs(loss - leaking) > 1e-4 * loss
    with pytest.raises(AssertionError):
        assert_close(gradients, others, 1e-2)


@pytest.mark.parametrize("architecture", ["phi", "gemma3"])
def test_checkpointing_computes_the_same(tiny_model, architecture):
    batch = end_to_end(make_rows())
    kept = loss_and_gradients(build(tiny_model, architecture), batch)
    again = loss_and_gradients(build(tiny_model, architecture, gradient_checkpointing=True), batch)
    assert again[0] == kept[0]
    for name, value in kept[1].items():
        assert torch.equal(value, again[1][name]), name


@pytest.mark.parametrize("architecture", ["phi", "mistral"])
def test_padded_batches_compute_as_transformers_own_attention_does(tiny_model, architecture):
    batch = Collator(0, 8, locate_targets=True)(make_rows())
    ours = loss_and_gradients(build(tiny_model, architecture), batch)
    plain = loss_and_gradients(build(tiny_model, architecture, padding_free="false"), batch)
    assert ours[0] == plain[0]
    for name, value in ours[1].items():
        assert torch.equal(value, plain[1][name]), name


def test_generation_from_padded_prompts_is_that_of_transformers_attention(tiny_model):
    prompts = {
        "input_ids": torch.tensor([[0, 0, 7, 8, 9], [5, 6, 7, 8, 9]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    }
    written = [
        build(tiny_model, "mistral", padding_free=value).eval().generate(
            **prompts, max_new_tokens=12, do_sample=False, use_cache=True
        )
        for value in ("auto", "false")
    ]  # fmt: skip
    assert torch.equal(*written)


# -- The kernel for all documents at once --------------------------------------------------


def reference_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size,
                     enable_gqa):  # fmt: skip
    """Compute what torch documents of `varlen_attn`, by one dense mask: it is a CUDA kernel."""
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_q.tolist() == cu_seq_k.tolist()
    lengths = cu_seq_q.diff()
    assert lengths.max() <= max_q == max_k
    groups = query.shape[1] // key.shape[1]
    assert enable_gqa == (groups > 1)
    key, value = (tensor.repeat_interleave(groups, 1) for tensor in (key, value))
    document = torch.arange(len(lengths)).repeat_interleave(lengths)
    position = torch.arange(len(document))
    distance = position[:, None] - position[None, :]
    before, after = window_size
    seen = (document[:, None] == document[None, :]) & (distance >= -after)
    if before >= 0:
        seen &= distance <= before
    scores = torch.einsum("qhe,khe->hqk", query, key) * scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khe->qhe", weights, value)


def test_the_varlen_kernel_is_asked_for_what_documents_compute(model, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
    rows = make_rows()
    loss, gradients = loss_and_gradients(model, end_to_end(rows))
    batch = EndToEndCollator(0, longest=32, pad_to_multiple_of=64)(rows)
    by_kernel, kernel_gradients = loss_and_gradients(model, batch)
    assert by_kernel == pytest.approx(loss, rel=1e-6)
    assert_close(gradients, kernel_gradients, 5e-6)


@pytest.mark.gpu
def test_the_varlen_kernel_computes_what_padded_rows_do(model):
    model.to("cuda", torch.bfloat16)
    rows = make_rows(lengths=(4,) * 16)

    def moved(batch):
        return {n: v.cuda() if isinstance(v, torch.Tensor) else v for n, v in batch.items()}

    loss, gradients = loss_and_gradients(model, moved(EndToEndCollator(0, 170, 128)(rows)))
    padded = Collator(0, 8, locate_targets=True)(rows)
    expected, padded_gradients = loss_and_gradients(model, moved(padded))
    assert loss == pytest.approx(expected, rel=2e-3)
    assert_close(padded_gradients, gradients, 5e-2)


# -- Whether, and by what ------------------------------------------------------------------


@pytest.fixture
def choose(tiny_model):
    def choose(architecture="phi", loss=LOSS, device="cpu", capability=None, compiles=False,
               dtype=torch.bfloat16, config=None, **settings):  # fmt: skip
        found = read_config(locate_model(str(tiny_model(architecture))))
        for name, value in (config or {}).items():
            setattr(found, name, value)
        return choose_block_attention(
            Settings(**settings), found, loss=loss, device_kind=device, dtype=dtype,
            compute_capability=capability, compiles=compiles,
        )  # fmt: skip

    return choose


def test_the_device_decides_what_computes_it(choose):
    assert choose().value == "documents"
    assert choose(device="cuda", capability=(8, 0)).value == "varlen"
    flash = choose(device="cuda", capability=(8, 0), attn_implementation="flash_attention_2")
    assert flash.value == "flash_attention_2"
    assert "without padding" in flash.reason


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ({"kernels": "stock"}, "kernels stock trains with padding"),
        ({"attn_implementation": "eager"}, "eager knows padded rows only"),
        ({"attn_implementation": "sdpa-efficient"}, "sdpa-efficient knows padded rows only"),
        ({"loss": Choice(False, "its loss")}, "the model keeps its loss"),
        ({"config": {"model_type": "falcon"}}, "how falcon uses positions is not known"),
        ({"config": {"rope_parameters": {"rope_type": "dynamic"}}}, "dynamic rotary embedding"),
        ({"config": {"use_bidirectional_attention": True}}, "looks ahead"),
        ({"device": "mps"}, "Metal keeps memory for each new shape"),
        ({"device": "cuda", "capability": (7, 5)}, "older than the varlen kernel"),
        ({"device": "cuda", "capability": (8, 0), "dtype": torch.float32}, "not in float32"),
        ({"device": "cuda", "capability": (8, 0), "config": {"head_dim": 20}}, "size 20"),
        ({"device": "cuda", "capability": (8, 0), "config": {"attention_dropout": 0.1}}, "dropout"),
        ({"compiles": True}, "compile anew"),
        ({"padding_free": "false"}, "padding_free is off"),
    ],
)
def test_rows_are_padded_for_a_reason(choose, question, reason):
    choice = choose(**question)
    assert choice.value is None
    assert "padded" in choice.reason
    assert reason in choice.reason


@pytest.mark.parametrize("asked", [{"padding_free": "true"}, {"packing": True}])
def test_asking_for_it_overrules_the_device_and_not_the_model(choose, asked):
    assert choose(device="mps", **asked).value == "documents"
    assert choose(device="cuda", capability=(7, 5), **asked).value == "documents"
    with pytest.raises(ConfigError, match="falcon") as caught:
        choose(config={"model_type": "falcon"}, **asked)
    assert next(iter(asked)) in str(caught.value)


def test_settings_that_cannot_use_it_keep_transformers_names():
    assert attention_name(Settings()) == "lorafit"
    assert attention_name(Settings(padding_free="false")) == "sdpa"
    assert attention_name(Settings(kernels="stock")) == "sdpa"
    assert attention_name(Settings(attn_implementation="eager")) == "eager"
    assert attention_name(Settings(attn_implementation="sdpa-efficient")) == "sdpa"
