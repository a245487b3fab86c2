import pytest
import torch
from tiny import count_supervised
from torch.nn import functional

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator
from lorafit.model.build import add_adapter, load_base
from lorafit.model.source import locate_model
from lorafit.model.step import make_optimizer, micro_batch_loss, training_step

pytestmark = pytest.mark.usefixtures("quiet_libraries")
CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model):
    settings = Settings(lora_dropout=0.0, gradient_checkpointing=False)
    source = locate_model(str(tiny_model(resid_pdrop=0.0)))
    return add_adapter(load_base(settings, source, torch.float32, CPU), settings)[0]


def six_rows():
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (5, 17, 9, 30, 12, 7):
        ids = torch.randint(1, 300, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]})
    return made


def batches(size):
    rows, collate = six_rows(), Collator(0)
    return [collate(rows[i : i + size]) for i in range(0, 6, size)]


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def accumulate(model, size, smoothing):
    model.zero_grad()
    parts = batches(size)
    num_targets = sum(count_supervised(batch["labels"]) for batch in parts)
    total = 0.0
    for batch in parts:
        loss = micro_batch_loss(model, batch, num_targets, smoothing)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model).clone(), num_targets


def token_mean_by_hand(model, smoothing=0.0):
    """Row by row, unpadded, in float64: cross-entropy (1-e)(-log p_y) + e mean(-log p)."""
    losses = []
    for row in six_rows():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        log_p = functional.log_softmax(logits.double(), -1)
        for position, target in enumerate(row["labels"][1:]):
            if target != -100:
                nll = -log_p[position, target]
                losses.append((1 - smoothing) * nll - smoothing * log_p[position].mean())
    return float(torch.stack(losses).mean()), len(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_token_mean_does_not_depend_on_how_rows_are_split(model, smoothing):
    # Sums of fp32 in another order: agreement to 1e-6 relative, observed about 1e-7.
    loss, gradient, num_targets = accumulate(model, 6, smoothing)
    by_hand, num_by_hand = token_mean_by_hand(model, smoothing)
    assert num_targets == num_by_hand
    assert loss == pytest.approx(by_hand, rel=1e-6)
    assert gradient.norm() > 0
    for size in (3, 2, 1):
        other, other_gradient, _ = accumulate(model, size, smoothing)
        assert other == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-7)


def test_a_mean_of_means_would_be_another_number(model):
    # The test above can fail: rows of different length weigh differently in a mean of means.
    single = [micro_batch_loss(model, b, count_supervised(b["labels"])) for b in batches(1)]
    assert float(sum(single).detach()) / 6 != pytest.approx(accumulate(model, 6, 0.0)[0], rel=1e-4)


def test_a_step_reports_the_norm_before_clipping_and_clips(model):
    settings = Settings(max_grad_norm=0.01, learning_rate=1.0, optim="sgd", weight_decay=0.0)
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    optimizer = make_optimizer(model, settings)
    _, gradient, num_targets = accumulate(model, 2, 0.0)
    model.zero_grad()
    outcome = training_step(model, optimizer, batches(2), num_targets, settings)
    assert float(outcome.grad_norm) == pytest.approx(float(gradient.norm()), rel=1e-5)
    after = [p.detach() for p in model.parameters() if p.requires_grad]
    moved = torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)])
    # SGD at rate 1 moves by the clipped gradient itself.
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_clipping_off_gives_no_norm(model):
    settings = Settings(max_grad_norm=0.0)
    outcome = training_step(model, make_optimizer(model, settings), batches(6), 40, settings)
    assert outcome.grad_norm is None


@pytest.mark.parametrize(
    ("optim", "kind"),
    [("adamw_torch", "AdamW"), ("adamw_torch_fused", "AdamW"), ("sgd", "SGD"),
     ("adafactor", "Adafactor")],
)  # fmt: skip
def test_every_optimizer_of_the_cpu_takes_a_step_at_its_rate(model, optim, kind):
    settings = Settings(optim=optim, learning_rate=1e-2)
    optimizer = make_optimizer(model, settings)
    assert type(optimizer).__name__ == kind
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}
    first = training_step(model, optimizer, batches(3), 53, settings).loss
    second = training_step(model, optimizer, batches(3), 53, settings).loss
    assert second < first


def test_weight_decay_spares_biases_and_norms(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "layers.0" in name
    groups = make_optimizer(model, Settings(weight_decay=0.1)).param_groups
    decayed, plain = groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert plain["params"]
