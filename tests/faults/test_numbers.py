"""Rows F19 to F21 and the first-step check: numbers that go wrong are told, with their rows."""

import json

import pytest
import torch

from lorafit.report.events import read_events
from lorafit.training.checkpoints.checkpoint import verify_checkpoint


def poison(folder, name="model.layers.1.mlp.fc2.weight"):
    """Put one NaN into a weight of a model."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.row("F19")
def test_f19_a_base_with_a_nan_stops_before_the_first_update(
    run_lorafit, train_arguments, own_model, record_of, tmp_path
):
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, model=poison(own_model())))
    assert outcome.code == 6
    assert "step 1: loss nan, gradient norm nan; the update was not applied" in outcome.err
    assert "hint: learning_rate was " in outcome.err
    assert record_of(run_dir)["status"] == "diverged"
    assert not (run_dir / "adapter").exists()
    assert not list(run_dir.glob("checkpoint-*"))


@pytest.mark.row("F19")
@pytest.mark.parametrize("clipping", [1.0, pytest.param(0.0, marks=pytest.mark.faults)])
@pytest.mark.parametrize(
    "factor", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.faults)]
)
def test_f19_a_loss_that_becomes_non_finite_leaves_the_last_checkpoint_good(
    run_lorafit, train_arguments, fail_in_step, record_of, tmp_path, factor, clipping
):
    run_dir = tmp_path / "run"
    fail_in_step(4, lambda loss: loss * factor)
    outcome = run_lorafit(*train_arguments(run_dir, max_grad_norm=clipping, save_steps=1))
    assert outcome.code == 6
    assert "step 4: loss " in outcome.err
    assert "the step's rows: " in outcome.err or "not finite by themselves: " in outcome.err
    assert "colours.jsonl:" in outcome.err
    assert [event["step"] for event in read_events(run_dir)] == [1, 2, 3]
    verify_checkpoint(run_dir / "checkpoint-3")
    assert record_of(run_dir)["results"]["steps"] == 3


@pytest.mark.row("F19")
def test_f19_the_row_that_is_not_finite_by_itself_is_named(
    run_lorafit, train_arguments, tiny_model, monkeypatch, tmp_path
):
    from transformers import AutoTokenizer

    from lorafit.training import trainer

    tokenizer, compute = AutoTokenizer.from_pretrained(tiny_model()), trainer.micro_batch_loss

    def loss(model, batch, *more):
        text = tokenizer.decode(batch["input_ids"].flatten())
        return compute(model, batch, *more) * (float("nan") if "thing 13 is" in text else 1.0)

    monkeypatch.setattr(trainer, "micro_batch_loss", loss)
    arguments = train_arguments(tmp_path / "run", max_steps=4, validation_split=0)
    outcome = run_lorafit(*arguments)
    assert outcome.code == 6, outcome.err
    # Rows are counted from 0, lines of the file from 1.
    assert "not finite by themselves: " in outcome.err
    assert "colours.jsonl:14\n" in outcome.err


@pytest.mark.row("F20")
def test_f20_a_non_finite_gradient_under_a_finite_loss_stops_too(
    run_lorafit, train_arguments, fail_in_step, tmp_path
):
    class BadGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    fail_in_step(2, BadGradient.apply)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 6
    assert "gradient norm nan; the update was not applied" in outcome.err
    assert "step 2: loss 5." in outcome.err


@pytest.mark.row("F21")
def test_f21_a_huge_finite_loss_goes_on_and_is_told_once(
    run_lorafit, train_arguments, fail_in_step, record_of, tmp_path
):
    run_dir = tmp_path / "run"
    fail_in_step(4, lambda loss: loss * 1000)
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0
    assert read_events(run_dir)[3]["loss"] > 1000
    (note,) = [note for note in record_of(run_dir)["notes"] if "far above the usual" in note]
    assert note.startswith("step 4: loss ")
    assert "gradient norm clipped from " in note
    assert note in outcome.err


def test_adapters_without_a_gradient_are_named_after_the_first_step(
    run_lorafit, train_arguments, monkeypatch, record_of, tmp_path
):
    from transformers.models.phi.modeling_phi import PhiMLP

    # A block that computes but is cut off from the loss, as a patched model can be.
    forward = PhiMLP.forward
    monkeypatch.setattr(PhiMLP, "forward", lambda self, x: forward(self, x).detach())
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, kernels="stock"))
    assert outcome.code == 0, outcome.err
    (note,) = [note for note in record_of(run_dir)["notes"] if "got no gradient" in note]
    assert note.startswith("4 of 12 adapters got no gradient in the first step")
    assert "model.layers.0.mlp.fc1, model.layers.0.mlp.fc2" in note


def test_a_healthy_run_warns_of_nothing(run_lorafit, train_arguments, record_of, tmp_path):
    assert run_lorafit(*train_arguments(tmp_path / "run")).code == 0
    warnings = ("no gradient", "far above", "out of memory", "changed", "incomplete")
    notes = record_of(tmp_path / "run")["notes"]
    assert not [note for note in notes for word in warnings if word in note]


def test_the_adapter_is_read_back_before_a_run_counts_as_done(
    run_lorafit, train_arguments, monkeypatch, tmp_path
):
    from lorafit.model import adapter

    write = adapter.save_adapter

    def write_and_damage(model, folder):
        write(model, folder)
        path = folder / "adapter_model.safetensors"
        content = bytearray(path.read_bytes())
        content[-7] ^= 1
        path.write_bytes(bytes(content))

    monkeypatch.setattr(adapter, "save_adapter", write_and_damage)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 7, outcome.err
    assert "what was read back is not what was written: 1 tensors differ" in outcome.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"


def test_another_error_is_a_bug_with_a_log_and_a_failed_record(
    run_lorafit, train_arguments, fail_in_step, record_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def fail(loss):
        raise RuntimeError("a strange\x1b[2J thing")

    fail_in_step(2, fail)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 1
    assert "a bug in lorafit: RuntimeError: a strange\\x1b[2J thing" in outcome.err
    (log,) = tmp_path.glob("lorafit-crash-*.log")
    assert str(log) in outcome.err
    assert "Traceback" in log.read_text()
    assert record_of(tmp_path / "run")["status"] == "failed"
