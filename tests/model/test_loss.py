import pytest
import torch
from torch.nn import functional

from lorafit.model import loss
from lorafit.model.loss import chunk_rows, chunked_cross_entropy, locate_targets

IGNORED = -100


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Chunks of 4 rows: 11 positions then take two whole ones and a part."""
    monkeypatch.setattr(loss, "_MIN_CHUNK", 4)
    monkeypatch.setattr(loss, "_MAX_CHUNK", 4)


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 8, dtype=dtype, generator=generator, requires_grad=True)
    weight = torch.randn(17, 8, dtype=dtype, generator=generator)
    bias = torch.randn(17, dtype=dtype, generator=generator)
    return hidden, weight, bias, torch.randint(0, 17, (11,), generator=generator)


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


def test_a_chunk_of_logits_stays_within_its_bytes(monkeypatch):
    monkeypatch.setattr(loss, "_MAX_CHUNK", 8192)
    assert chunk_rows(51_200) == 1024
    assert chunk_rows(51_200) * 51_200 * 4 <= loss._CHUNK_BYTES
    assert chunk_rows(10**9) == 4


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
