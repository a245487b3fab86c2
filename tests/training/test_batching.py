"""Padded, end to end or packed: what a run's steps hold, and that they resume exactly."""

import json
import math

import pytest
from tiny import colour_rows, write_jsonl

from lorafit.config.batch import BatchPlan
from lorafit.data.micro_batches import MicroBatchLimits
from lorafit.data.packing import pack_rows
from lorafit.hardware.info import Choice
from lorafit.memory.planner import PAD_TO_MULTIPLE
from lorafit.report.events import read_events
from lorafit.training.planning.batching import few_lengths, plan_batching

from .test_resume import assert_same_run

QUIET = {"lora_dropout": 0, "eval_steps": 100}
PACKED = {"packing": True, "per_device_train_batch_size": 1, "max_length": 64}


def plan_of(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.fixture
def train(run_lorafit, train_arguments, tmp_path):
    """Run a training and return its events."""

    def train(name, **changes):
        outcome = run_lorafit(*train_arguments(tmp_path / name, **changes))
        assert outcome.code == 0, outcome.err
        return read_events(tmp_path / name)

    return train


# -- The same steps ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["phi", "gemma3"])
def test_steps_without_padding_are_the_steps_of_the_padded_run(train, tiny_model, architecture):
    options = {"resid_pdrop": 0.0} if architecture == "phi" else {}
    model = tiny_model(architecture, **options)
    padded, plain = (
        train(value, model=model, padding_free=value, max_steps=4, **QUIET)
        for value in ("false", "auto")
    )
    for one, other in zip(padded, plain, strict=True):
        for name in ("tokens", "supervised_tokens", "learning_rate", "epoch"):
            assert one[name] == other[name]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_validation_goes_the_way_of_training_and_has_the_losses_of_padded_rows(
    train, tiny_model, monkeypatch
):
    from lorafit.data.collate import Collator

    model = tiny_model(resid_pdrop=0.0)
    options = {"model": model, "max_steps": 4, "lora_dropout": 0, "eval_steps": 2}
    padded = train("padded", padding_free="false", **options)
    # Nothing is padded from here on.
    monkeypatch.setattr(Collator, "__call__", None)
    plain = train("plain", **options)
    losses = [[event.get("validation_loss") for event in events] for events in (padded, plain)]
    assert [loss is not None for loss in losses[0]] == [False, True, False, True]
    assert losses[1][1::2] == pytest.approx(losses[0][1::2], rel=1e-6)


def test_a_longer_row_than_the_others_is_no_trouble(train, tmp_path):
    rows = [*colour_rows(7), {"prompt": "the " * 10, "completion": " red"}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    events = train("run", data=data, validation_split=0, max_steps=3, **QUIET)
    assert all(math.isfinite(event["loss"]) for event in events)


# -- Packing -------------------------------------------------------------------------------


def test_the_plan_counts_bins_and_says_so(run_lorafit, train_arguments, tmp_path):
    arguments = train_arguments(tmp_path / "run", "--dry-run", max_steps=None, **PACKED)
    outcome = run_lorafit(*arguments, "--num-train-epochs", "2", "--json")
    plan = plan_of(outcome)["plan"] if "plan" in json.loads(outcome.out) else plan_of(outcome)
    num_bins = plan["batch"]["num_bins"]
    assert 1 < num_bins < 18
    assert plan["schedule"]["num_rows"] == num_bins
    assert plan["schedule"]["steps_per_epoch"] == math.ceil(num_bins / 3)
    assert plan["schedule"]["total_steps"] == 2 * math.ceil(num_bins / 3)
    assert f"18 rows in {num_bins} bins of 64 tokens" in plan["reasons"]["packing"]
    shown = " ".join(run_lorafit(*arguments).err.split())
    assert "effective batch, up to 64 tokens a bin" in shown
    assert "micro-batch, effective batch and steps count bins" in shown


def test_an_epoch_of_bins_holds_every_row_once(train):
    events = train("run", max_steps=None, num_train_epochs=1, warmup_steps=0, **PACKED, **QUIET)
    plain = train("rows", max_steps=3, padding_free="false", **QUIET)
    for name in ("tokens", "supervised_tokens"):
        assert sum(event[name] for event in events) == sum(event[name] for event in plain)


@pytest.mark.parametrize("other", [{"padding_free": "false"}, {"kernels": "stock"}])
def test_packing_refuses_what_it_cannot_do_without(run_lorafit, train_arguments, tmp_path, other):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", **PACKED, **other))
    assert outcome.code == 2, outcome.err
    assert "packing" in outcome.err
    assert next(iter(other)) in outcome.err


# -- Resuming ------------------------------------------------------------------------------


@pytest.fixture
def interrupt(run_lorafit, train_arguments, stop_at, tmp_path):
    """Return a factory of runs that a signal stopped at about a step, in mid-epoch."""

    def interrupt(step, **changes):
        disarm = stop_at(step)
        outcome = run_lorafit(*train_arguments(tmp_path / "run", **changes))
        disarm()
        assert outcome.code == 75, outcome.err
        return tmp_path / "run"

    return interrupt


@pytest.fixture
def check_resume(run_lorafit, train_arguments, interrupt, tmp_path):
    def check(stop, **changes):
        whole = tmp_path / "whole"
        assert run_lorafit(*train_arguments(whole, **changes)).code == 0
        run_dir = interrupt(stop, **changes)
        outcome = run_lorafit(*train_arguments(run_dir, **changes))
        assert outcome.code == 0, outcome.err
        assert_same_run(whole, run_dir)

    return check


@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (4, {"padding_free": "true", "gradient_accumulation_steps": 1}),
        (2, {"padding_free": "false"}),
        (4, {**PACKED, "gradient_accumulation_steps": 1}),
        (2, {**PACKED, "max_length": 40}),
    ],
    ids=["end-to-end-1", "padded-3", "packed-1", "packed-3"],
)
def test_every_form_of_batch_resumes_exactly(check_resume, stop, changes):
    check_resume(stop, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("form", [{"padding_free": "true"}, PACKED], ids=["end-to-end", "packed"])
def test_worker_processes_change_nothing_about_resuming(check_resume, form, accumulation):
    changes = {**form, "gradient_accumulation_steps": accumulation}
    check_resume(4, dataloader_num_workers=2, **changes)


@pytest.mark.parametrize(
    ("changes", "name"), [({"padding_free": "false"}, "padding_free"), (PACKED, "packing")]
)
def test_a_run_is_not_continued_in_another_form(
    run_lorafit, train_arguments, interrupt, changes, name
):
    outcome = run_lorafit(*train_arguments(interrupt(2), **changes))
    assert outcome.code == 5, outcome.err
    assert name in outcome.err


# -- The choice ----------------------------------------------------------------------------


def make(kind="cpu", attention="documents", packing=None, units=4, lengths=(30, 100, 61)):
    choice = Choice(attention, "a reason")
    return plan_batching(choice, BatchPlan(units, 2, 1, 2 * units, ""), lengths, packing, kind)


def test_the_budget_is_that_of_padded_full_rows():
    batching = make("cuda", "varlen")
    assert batching.limits.tokens == 512  # 4 x 104, rounded up to 128
    collate = batching.collator(0, locate_targets=True)
    assert (collate.longest, collate.pad_to_multiple_of, collate.by_document) == (100, 128, False)


def test_bins_are_the_rows_of_the_budget():
    packing = pack_rows((30, 100, 61), 128, 0)
    batching = make("cuda", "varlen", packing, units=1)
    assert batching.limits.tokens == 128
    assert batching.reasons()["packing"] == packing.describe()


def test_padded_rows_are_counted_and_not_measured():
    batching = make(attention=None)
    assert (batching.limits.units, batching.limits.tokens) == (4, None)
    assert batching.collator(0, locate_targets=True).padded_length(9) == 16


@pytest.mark.parametrize(
    ("kind", "attention", "units", "rows"),
    [("cuda", "varlen", 4, 5), ("cpu", None, 4, 4), ("cpu", "documents", 64, 14)],
)
def test_validation_takes_no_more_tokens_than_training(kind, attention, units, rows):
    batching = make(kind, attention, units=units)
    assert batching.eval_rows == rows
    assert batching.eval_limits(rows).tokens == batching.limits.tokens


def test_validation_batches_grow_and_shrink_with_their_rows():
    batching = make("cuda", "varlen", units=4)
    assert [batching.eval_limits(rows).tokens for rows in (10, 5, 2, 1)] == [1024, 512, 204, 102]
    assert make(attention=None).eval_limits(3) == MicroBatchLimits(3)


def test_metal_sees_a_few_lengths():
    batching = make("mps", None, lengths=(1000, 3))
    lengths = batching.lengths.value
    assert lengths == few_lengths(1000).value
    assert len(lengths) <= 8
    assert lengths[-1] == 1000
    assert all(length % PAD_TO_MULTIPLE == 0 for length in lengths)
    assert "8 lengths" in batching.limits_reason
    assert batching.collator(0, locate_targets=False).padded_length(130) == 256


@pytest.mark.parametrize("longest", [1, 7, 8, 9, 63, 64, 65, 1023])
def test_the_few_lengths_hold_every_row_and_no_more_than_padding_would(longest):
    lengths = few_lengths(longest).value
    assert lengths[-1] == -(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE
    assert list(lengths) == sorted(set(lengths))
