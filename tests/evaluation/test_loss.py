import math

import pytest
import torch
from tiny import colour_rows, write_jsonl

from lorafit.config.schema import Settings
from lorafit.data.collate import Collator, EndToEndCollator
from lorafit.data.load import load_source
from lorafit.data.micro_batches import MicroBatchLimits
from lorafit.evaluation.loss import _plan_batches, evaluate_loss
from lorafit.model.build import add_adapter, load_base
from lorafit.model.loss import _ChunkedCrossEntropy
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
    report = evaluate_loss(model, rows, Collator(0), MicroBatchLimits(batch_size), CPU)
    expected, count = by_hand(model.eval(), rows)
    assert report.loss == pytest.approx(expected, rel=1e-6)
    assert report.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    assert (report.num_rows, report.num_targets) == (9, count)


def test_dropout_is_off_and_the_mode_is_restored(model_and_rows):
    model, rows = model_and_rows
    model.train()
    first = evaluate_loss(model, rows, Collator(0), MicroBatchLimits(3), CPU).loss
    assert evaluate_loss(model, rows, Collator(0), MicroBatchLimits(3), CPU).loss == first
    assert model.training


def test_validation_draws_no_random_number(model_and_rows):
    model, rows = model_and_rows
    before = torch.get_rng_state()
    evaluate_loss(model, rows, Collator(0), MicroBatchLimits(2), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_longest_rows_come_first(model_and_rows):
    model, rows = model_and_rows
    lengths = []

    def collate(chosen):
        lengths.append(max(len(row["input_ids"]) for row in chosen))
        return Collator(0)(chosen)

    seen = []
    evaluate_loss(model, rows, collate, MicroBatchLimits(2), CPU, lambda *at: seen.append(at))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == max(rows.lengths)
    assert seen == [(n, 5) for n in range(1, 6)]


def test_each_row_is_read_once(model_and_rows, monkeypatch):
    model, rows = model_and_rows
    read = []
    take = type(rows).__getitem__

    def reading(self, index):
        read.append(self.source_of(index))
        return take(self, index)

    monkeypatch.setattr(type(rows), "__getitem__", reading)
    share = rows.subset(range(1, len(rows), 2))
    evaluate_loss(model, share, Collator(0), MicroBatchLimits(2), CPU)
    assert sorted(read) == sorted(rows.source_of(index) for index in range(1, len(rows), 2))


# -- End to end ----------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["lorafit", "stock"])
@pytest.mark.parametrize("architecture", ["phi", "llama", "mistral", "gemma3", "qwen2"])
@pytest.mark.parametrize("tokens", [1, 100, 10_000])
def test_rows_end_to_end_have_the_loss_of_padded_ones(
    tiny_model, tmp_path, architecture, kernels, tokens
):
    settings = Settings(max_length=64, lora_r=4, gradient_checkpointing=False)
    source = locate_model(str(tiny_model(architecture)))
    data = write_jsonl(tmp_path / "rows.jsonl", colour_rows(9))
    rows = load_source(str(data), settings, tokenizer_of(source)).dataset
    base = load_base(settings, source, torch.float32, CPU)
    if kernels == "stock":
        # The layers alone: rows end to end need the loss that knows where they begin.
        settings = settings.model_copy(update={"use_dora": True})
    model = add_adapter(base, settings)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    padded = Collator(0, locate_targets=True)
    expected = evaluate_loss(model, rows, padded, MicroBatchLimits(3), CPU)
    end_to_end = EndToEndCollator(0, max(rows.lengths), pad_to_multiple_of=64, by_document=True)
    got = evaluate_loss(model, rows, end_to_end, MicroBatchLimits(3, tokens), CPU)
    assert got.loss == pytest.approx(expected.loss, rel=1e-6)
    assert got[2:] == expected[2:]


def test_batches_end_to_end_keep_to_their_tokens_and_begin_with_the_longest_row(model_and_rows):
    model, rows = model_and_rows
    seen = []

    class Taken(Exception):
        pass

    def collate(chosen):
        seen.append([len(row["input_ids"]) for row in chosen])
        raise Taken

    budget = 2 * max(rows.lengths)
    with pytest.raises(Taken):
        evaluate_loss(model, rows, collate, MicroBatchLimits(2, budget), CPU)
    assert seen[0][0] == max(rows.lengths)
    assert sum(seen[0]) <= budget
    assert not model.training


def test_validation_keeps_no_gradient_of_the_loss(model_and_rows, monkeypatch):
    model, rows = model_and_rows
    from lorafit.model.loss import install_chunked_loss

    install_chunked_loss(model)
    model.requires_grad_(False)
    kept = []
    forward = _ChunkedCrossEntropy.forward

    def watching(ctx, *arguments):
        kept.append(ctx.needs_input_grad[0])
        return forward(ctx, *arguments)

    monkeypatch.setattr(_ChunkedCrossEntropy, "forward", staticmethod(watching))
    evaluate_loss(model, rows, Collator(0, locate_targets=True), MicroBatchLimits(3), CPU)
    assert kept == [False] * 3


def test_many_rows_are_put_together_in_parts_that_fill_their_budget():
    lengths = [10 + index * 7919 % 500 for index in range(30_000)]
    batches = _plan_batches(lengths, MicroBatchLimits(4, 1408, 64))
    assert sorted(index for batch in batches for index in batch) == [*range(len(lengths))]
    assert max(sum(lengths[index] for index in batch) for batch in batches) <= 1408
    assert lengths[batches[0][0]] == max(lengths)
    assert len(batches) < 1.02 * sum(lengths) / 1408
