import pytest
import torch
from torch.nn import functional

from lorafit.model import loss
from lorafit.model.chunks import chunk_rows
from lorafit.model.lean import products
from lorafit.model.lean.dropout import keep_mask
from lorafit.model.loss import HeadUpdate, chunked_cross_entropy, locate_targets

IGNORED = -100


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Chunks of 4 rows: 11 positions then take two whole ones and a part."""
    monkeypatch.setattr(loss, "chunk_rows", lambda *_: 4)


@pytest.fixture(params=[False, True], ids=["blas", "onednn"])
def _either_library(request):
    """With oneDNN a chunk has rows of padding."""
    products.use_onednn(request.param)
    yield
    products.use_onednn(False)


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(17, 8, dtype=dtype, generator=generator)
    bias = torch.randn(17, dtype=dtype, generator=generator)
    return hidden, weight, bias, torch.randint(0, 17, (11,), generator=generator)


@pytest.mark.usefixtures("_either_library")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradient_are_those_of_all_logits_at_once(smoothing, softcap, with_bias):
    hidden, weight, bias, targets = problem()
    head_bias = bias if with_bias else None
    logits = functional.linear(hidden, weight, head_bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    (expected_grad,) = torch.autograd.grad(expected, hidden)
    options = {"smoothing": smoothing, "softcap": softcap}
    got = chunked_cross_entropy(hidden, weight, head_bias, targets, **options)
    (got_grad,) = torch.autograd.grad(got, hidden)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_grad, expected_grad, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda h: chunked_cross_entropy(h, weight, head_bias, targets, **options), (hidden,)
    )


# -- LoRA on the output layer --------------------------------------------------------------


def factors_of(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(3, 8, dtype=dtype, generator=generator, requires_grad=True)
    return a, torch.randn(17, 3, dtype=dtype, generator=generator, requires_grad=True)


@pytest.mark.usefixtures("_either_library")
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("smoothing", "softcap"), [(0.0, None), (0.1, 3.0)])
def test_an_adapted_output_layer_has_loss_and_gradients_of_all_logits_at_once(
    dropout, smoothing, softcap
):
    hidden, weight, bias, targets = problem()
    a, b = factors_of()
    chunks = [keep_mask(hidden[i : i + 4], dropout, seed=i // 4) for i in (0, 4, 8)]
    mask = torch.cat(chunks).double() / (1 - dropout)
    logits = functional.linear(hidden, weight, bias) + 0.5 * (hidden * mask) @ a.T @ b.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    expected_grads = torch.autograd.grad(3 * expected, (hidden, a, b))

    def loss_of(hidden, a, b):
        update = HeadUpdate(a, b, 0.5, dropout, lambda chunk: chunk)
        return chunked_cross_entropy(
            hidden, weight, bias, targets, smoothing=smoothing, softcap=softcap, update=update
        )

    got = loss_of(hidden, a, b)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(3 * got, (hidden, a, b))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(loss_of, (hidden, a, b))


def test_an_adapter_on_the_output_layer_alone_leaves_hidden_states_without_gradient():
    hidden, weight, bias, targets = problem()
    update = HeadUpdate(*factors_of(), 1.0)
    both = torch.autograd.grad(
        chunked_cross_entropy(hidden, weight, bias, targets, update=update), (update.a, update.b)
    )
    alone = chunked_cross_entropy(hidden.detach(), weight, bias, targets, update=update)
    assert all(map(torch.equal, torch.autograd.grad(alone, (update.a, update.b)), both))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_adapters_of_the_output_layer_stay_fp32_beside_16_bit_hidden_states(dtype, dropout):
    hidden, weight, bias, targets = (part.detach() for part in problem(torch.float32))
    a, b = factors_of(torch.float32)

    def gradients(kind):
        inputs = (hidden.to(dtype).to(kind)).requires_grad_()
        update = HeadUpdate(a, b, 0.5, dropout, lambda chunk: chunk)
        loss = chunked_cross_entropy(
            inputs, weight.to(dtype).to(kind), bias.to(dtype).to(kind), targets, update=update
        )
        return loss, *torch.autograd.grad(loss, (inputs, a, b))

    narrow, wide = gradients(dtype), gradients(torch.float32)
    assert [each.dtype for each in narrow] == [torch.float32, dtype, torch.float32, torch.float32]
    for got, expected in zip(narrow, wide, strict=True):
        difference = (got.float() - expected).norm() / expected.norm()
        assert difference < 2e-2 if dtype == torch.bfloat16 else difference < 2e-3


def test_no_targets_give_no_loss_and_no_gradient():
    hidden, weight, bias, targets = problem()
    total = chunked_cross_entropy(hidden[:0], weight, bias, targets[:0])
    assert float(total.detach()) == 0.0


def test_a_position_predicts_the_next_token_of_its_own_row_only():
    labels = torch.tensor([[5, IGNORED, 7, 8], [1, 2, IGNORED, IGNORED]])
    found = locate_targets(labels, IGNORED)
    # Row 0 predicts 7 and 8 from positions 1 and 2; row 1 predicts 2 from position 0, which is 4
    # in the flat batch. The first label of row 1 is nobody's target.
    assert found["target_positions"].tolist() == [1, 2, 4]
    assert found["targets"].tolist() == [7, 8, 2]


@pytest.mark.parametrize(
    ("device", "vocabulary", "rows"),
    [
        ("cuda", 51_200, 1024),  # 200 of 256 MiB
        ("cuda", 1000, 8192),
        ("cuda", 10**9, 128),
        ("cpu", 8192, 512),  # all of 16 MiB
        ("cpu", 51_200, 256),
    ],
)
def test_a_chunk_of_logits_stays_within_its_bytes_as_far_as_products_are_quick(
    device, vocabulary, rows
):
    assert chunk_rows(vocabulary, device) == rows


@pytest.mark.parametrize("architecture", ["phi", "llama", "mistral", "gemma3", "qwen2"])
def test_training_takes_the_same_losses_with_either_kernels(
    run_lorafit, train_arguments, tiny_model, tmp_path, architecture
):
    from lorafit.report.events import read_events

    losses = []
    for kernels in ("lorafit", "stock"):
        run_dir = tmp_path / kernels
        # Without dropout, whose masks the two draw differently.
        model = tiny_model(architecture, **({"resid_pdrop": 0.0} if architecture == "phi" else {}))
        outcome = run_lorafit(
            *train_arguments(run_dir, model=model, kernels=kernels, lora_dropout=0)
        )
        assert outcome.code == 0, outcome.err
        losses.append([event["loss"] for event in read_events(run_dir)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("architecture", ["phi", "llama"])
@pytest.mark.parametrize("targets", ["lm_head", "q_proj,lm_head"])
def test_an_adapter_on_the_output_layer_trains_as_with_stock_kernels(
    run_lorafit, train_arguments, tiny_model, tmp_path, architecture, targets
):
    from safetensors.torch import load_file

    from lorafit.report.events import read_events

    losses, adapters = [], []
    model = tiny_model(architecture, **({"resid_pdrop": 0.0} if architecture == "phi" else {}))
    for kernels in ("lorafit", "stock"):
        run_dir = tmp_path / kernels
        outcome = run_lorafit(
            *train_arguments(
                run_dir, model=model, kernels=kernels, lora_dropout=0, target_modules=targets
            )
        )
        assert outcome.code == 0, outcome.err
        assert ("a chunk at a time" in outcome.err) is (kernels == "lorafit")
        losses.append([event["loss"] for event in read_events(run_dir)])
        adapters.append(load_file(run_dir / "adapter" / "adapter_model.safetensors"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert any("lm_head.lora_B" in name for name in adapters[0])
    assert all("lora_" in name for name in adapters[0])
    for name, expected in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], expected, rtol=1e-3, atol=1e-5)


def test_an_output_layer_that_is_saved_whole_keeps_the_stock_loss_and_says_so(
    run_lorafit, train_arguments, tmp_path
):
    arguments = train_arguments(tmp_path / "run", "--dry-run", modules_to_save="lm_head")
    shown = " ".join(run_lorafit(*arguments).err.split())
    assert "transformers' own loss" in shown
    assert "modules_to_save trains its output layer as a whole" in shown


def test_an_adapter_on_a_tied_output_layer_is_refused(
    run_lorafit, train_arguments, tiny_model, tmp_path
):
    model = tiny_model("llama", tie_word_embeddings=True)
    outcome = run_lorafit(
        *train_arguments(tmp_path / "run", model=model, target_modules="q_proj,lm_head")
    )
    assert outcome.code == 3, outcome.err
    assert "tie_word_embeddings" in outcome.err
    assert "leave lm_head out" in outcome.err
