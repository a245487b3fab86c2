"""A resumed run multiplies with the library that it began with, whatever the machine is fast at."""

import json

import pytest

from lorafit.model.lean import cpu_products, products
from lorafit.report.events import read_events

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _as_before():
    yield
    products.use_onednn(False)


@pytest.fixture
def onednn_speed(monkeypatch):
    """Return a function that sets how fast oneDNN was measured on this machine."""
    return lambda ratio: monkeypatch.setattr(cpu_products, "_read", lambda path: ratio)


def record_of(run_dir):
    return json.loads((run_dir / "run.json").read_text())


@pytest.mark.parametrize(
    ("then", "now", "began_with", "would_take"),
    [(2.0, 0.5, "oneDNN", "torch.mm"), (0.5, 2.0, "torch.mm", "oneDNN")],
)
def test_a_run_goes_on_with_the_products_that_it_began_with(
    run_lorafit, train_arguments, interrupted, onednn_speed, tmp_path, then, now, began_with,
    would_take,
):  # fmt: skip
    onednn_speed(then)
    assert run_lorafit(*train_arguments(tmp_path / "whole")).code == 0
    run_dir = interrupted(tmp_path / "run", 3)
    assert record_of(run_dir)["cpu_products"] == began_with
    onednn_speed(now)
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    note = f"fp32 products stay with {began_with}, as this run began"
    assert f"{note}; here {would_take} would be chosen" in " ".join(outcome.err.split())
    assert record_of(run_dir)["cpu_products"] == began_with
    losses = [[event["loss"] for event in read_events(d)] for d in (tmp_path / "whole", run_dir)]
    assert losses[0] == losses[1]
    assert (run_dir / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


def test_a_record_of_an_earlier_version_leaves_the_choice_to_the_machine(
    run_lorafit, train_arguments, interrupted, onednn_speed, tmp_path
):
    onednn_speed(0.5)
    run_dir = interrupted(tmp_path / "run", 3)
    record = record_of(run_dir)
    del record["cpu_products"]
    (run_dir / "run.json").write_text(json.dumps(record))
    onednn_speed(2.0)
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert "as this run began" not in outcome.err
    assert record_of(run_dir)["cpu_products"] == "oneDNN"


def test_stock_layers_choose_no_library(run_lorafit, train_arguments, tmp_path):
    assert run_lorafit(*train_arguments(tmp_path / "run", kernels="stock", max_steps=1,
                                        warmup_steps=0)).code == 0  # fmt: skip
    assert record_of(tmp_path / "run")["cpu_products"] is None


@pytest.mark.parametrize("recorded", ["oneDNN", "torch.mm"])
def test_where_the_recorded_library_is_missing_that_is_said(monkeypatch, recorded):
    monkeypatch.setattr(cpu_products, "has_onednn", lambda: False)
    products.use_onednn(False)
    note = cpu_products.keep_cpu_products(recorded)
    if recorded == "torch.mm":
        assert note is None
    else:
        assert "this PyTorch has no oneDNN, with which this run began" in note
        assert "not bit for bit" in note
