import math

import pytest
import torch
from tiny import colour_rows, write_jsonl

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator
from lorafit.data.load import load_source
from lorafit.evaluation.loss import evaluate_loss
from lorafit.model.build import load_base
from lorafit.model.source import locate_model
from lorafit.model.tokenizer import tokenizer_of

pytestmark = pytest.mark.usefixtures("quiet_libraries")
CPU = torch.device("cpu")


@pytest.fixture
def model_and_rows(tiny_model, tmp_path):
    source = locate_model(str(tiny_model()))
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(9))
    rows = load_source(str(data), Settings(max_length=64), tokenizer_of(source)).dataset
    return load_base(Settings(), source, torch.float32, CPU), rows


def by_hand(model, rows):
    """Token mean in float64, one unpadded row at a time."""
    losses = []
    for index in range(len(rows)):
        ids, labels = rows[index]["input_ids"], rows[index]["labels"]
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses += [-log_p[i - 1, y] for i, y in enumerate(labels) if i and y != -100]
    return float(torch.stack(losses).mean()), len(losses)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 100])
def test_the_loss_is_the_exact_token_mean(model_and_rows, batch_size):
    model, rows = model_and_rows
    report = evaluate_loss(model, rows, Collator(0), batch_size, CPU)
    expected, count = by_hand(model.eval(), rows)
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert report.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    assert (report.num_rows, report.num_targets) == (9, count)


def test_dropout_is_off_and_the_mode_is_restored(model_and_rows):
    model, rows = model_and_rows
    model.train()
    first = evaluate_loss(model, rows, Collator(0), 3, CPU).loss
    assert evaluate_loss(model, rows, Collator(0), 3, CPU).loss == first
    assert model.training


def test_validation_draws_no_random_number(model_and_rows):
    model, rows = model_and_rows
    before = torch.get_rng_state()
    evaluate_loss(model, rows, Collator(0), 2, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_longest_rows_come_first(model_and_rows):
    model, rows = model_and_rows
    lengths = []

    def collate(chosen):
        lengths.append(max(len(row["input_ids"]) for row in chosen))
        return Collator(0)(chosen)

    seen = []
    evaluate_loss(model, rows, collate, 2, CPU, lambda *at: seen.append(at))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == max(rows.lengths)
    assert seen == [(n, 5) for n in range(1, 6)]
