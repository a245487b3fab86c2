"""Runs that go wrong stop in time, say why, and keep what was saved."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from tiny import child_environment, start_lorafit

from lorafit.cli.progress import TerminalProgress
from lorafit.report.events import read_events
from lorafit.training.checkpoint import verify_checkpoint


def record_of(run_dir):
    return json.loads((run_dir / "run.json").read_text())


def poison(folder, name="model.layers.1.mlp.fc2.weight"):
    """Put one NaN into a weight of a model."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def fail_in_step(monkeypatch):
    """Return a function that makes the loss of an optimizer step raise or change."""

    def arrange(step, action):
        from lorafit.training import trainer

        compute = trainer.micro_batch_loss
        done = {"step": 0}
        on_step = TerminalProgress.on_step

        def count(self, record):
            on_step(self, record)
            done["step"] = record.step

        def loss(model, batch, num_targets, smoothing=0.0):
            value = compute(model, batch, num_targets, smoothing)
            return action(value) if done["step"] == step - 1 and model.training else value

        monkeypatch.setattr(TerminalProgress, "on_step", count)
        monkeypatch.setattr(trainer, "micro_batch_loss", loss)

    return arrange


def raise_(error):
    raise error


def test_f19_a_base_with_a_nan_stops_before_the_first_update(
    run_lorafit, train_arguments, own_model, tmp_path
):
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir, model=poison(own_model())))
    assert outcome.code == 6
    assert "step 1: loss nan, gradient norm nan; the update was not applied" in outcome.err
    assert "hint: learning_rate was " in outcome.err
    assert record_of(run_dir)["status"] == "diverged"
    assert not (run_dir / "adapter").exists()
    assert not list(run_dir.glob("checkpoint-*"))


@pytest.mark.parametrize("clipping", [1.0, 0.0])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_f19_a_loss_that_becomes_non_finite_leaves_the_last_checkpoint_good(
    run_lorafit, train_arguments, fail_in_step, tmp_path, factor, clipping
):
    run_dir = tmp_path / "run"
    fail_in_step(4, lambda loss: loss * factor)
    outcome = run_lorafit(*train_arguments(run_dir, max_grad_norm=clipping, save_steps=1))
    assert outcome.code == 6
    assert "step 4: loss " in outcome.err
    assert [event["step"] for event in read_events(run_dir)] == [1, 2, 3]
    verify_checkpoint(run_dir / "checkpoint-3")
    assert record_of(run_dir)["results"]["steps"] == 3


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


def test_f21_a_huge_finite_loss_goes_on(run_lorafit, train_arguments, fail_in_step, tmp_path):
    fail_in_step(2, lambda loss: loss * 1000)
    assert run_lorafit(*train_arguments(tmp_path / "run")).code == 0
    assert read_events(tmp_path / "run")[1]["loss"] > 1000


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError("no more"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_f22_out_of_memory_gives_the_numbers_to_type(
    run_lorafit, train_arguments, fail_in_step, tmp_path, error
):
    run_dir = tmp_path / "run"
    fail_in_step(3, lambda loss: raise_(error))
    outcome = run_lorafit(*train_arguments(run_dir, per_device_train_batch_size=4,
                                           gradient_accumulation_steps=2))  # fmt: skip
    assert outcome.code == 4
    assert "ran out of this machine's memory with micro-batch 4 x 64 tokens" in outcome.err
    assert str(error).splitlines()[0] in outcome.err
    assert "--per-device-train-batch-size 2 --gradient-accumulation-steps 4" in outcome.err
    assert record_of(run_dir)["status"] == "out_of_memory"
    verify_checkpoint(run_dir / "checkpoint-2")


def test_f25_out_of_memory_at_one_row_does_not_advise_half_a_row(
    run_lorafit, train_arguments, fail_in_step, tmp_path
):
    fail_in_step(1, lambda loss: raise_(torch.OutOfMemoryError("CUDA out of memory.")))
    outcome = run_lorafit(*train_arguments(tmp_path / "run", per_device_train_batch_size=1))
    assert outcome.code == 4
    assert "--per-device-train-batch-size" not in outcome.err.split("hint:")[1]
    assert "--max-length" in outcome.err.split("hint:")[1]


def test_another_error_is_a_bug_with_a_log_and_a_failed_record(
    run_lorafit, train_arguments, fail_in_step, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fail_in_step(2, lambda loss: raise_(RuntimeError("a strange\x1b[2J thing")))
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 1
    assert "a bug in lorafit: RuntimeError: a strange\\x1b[2J thing" in outcome.err
    (log,) = tmp_path.glob("lorafit-crash-*.log")
    assert str(log) in outcome.err
    assert "Traceback" in log.read_text()
    assert record_of(tmp_path / "run")["status"] == "failed"


def test_f9_a_disk_that_is_too_small_is_refused_beforehand(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    monkeypatch.setattr("lorafit.training.plan.free_bytes", lambda path: 100_000)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 7
    assert "checkpoints and adapter need 280 KiB, but only 97.7 KiB are free" in outcome.err
    assert "lower --save-total-limit" in outcome.err
    assert not (tmp_path / "run").exists()


def test_f9_a_disk_that_fills_up_during_a_save_keeps_the_earlier_checkpoint(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    from lorafit.training import state

    save = state.save_optimizer

    def full(optimizer, folder):
        if folder.name.endswith("-4"):
            raise OSError(28, "No space left on device")
        save(optimizer, folder)

    monkeypatch.setattr(state, "save_optimizer", full)
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 7
    assert "the checkpoint of step 4 could not be written: No space left" in outcome.err
    assert "earlier checkpoints are intact" in outcome.err
    assert {path.name for path in run_dir.glob("*checkpoint-*")} == {"checkpoint-2"}
    monkeypatch.setattr(state, "save_optimizer", save)
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-2" in outcome.err


def test_f10_an_event_log_that_cannot_be_written_costs_the_log_only(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    from lorafit.report.events import EventLog

    on_start = EventLog.on_start

    def blocked(self, num_steps, first_step):
        on_start(self, num_steps, first_step)
        self.path.mkdir()

    monkeypatch.setattr(EventLog, "on_start", blocked)
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 0
    assert any(
        "events.jsonl is incomplete" in note for note in record_of(tmp_path / "run")["notes"]
    )
    assert "events.jsonl is incomplete" in outcome.err


def test_f11_a_limit_on_file_sizes_is_a_storage_error(train_arguments, tmp_path):
    # Real writes that really fail, deep inside of safetensors: no file may grow beyond 20 KiB.
    run_dir = tmp_path / "run"
    code = (
        "import resource, sys\n"
        "import lorafit.training.run\n"
        "from lorafit.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024, 20 * 1024))\n"
        "main(sys.argv[1:])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *train_arguments(run_dir)],
        capture_output=True, text=True, env=child_environment(),
    )  # fmt: skip
    assert result.returncode == 7, result.stderr
    assert "the checkpoint of step 2 could not be written: " in result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(run_dir.glob("*checkpoint-*"))


def test_f13_an_output_folder_that_vanishes_is_a_storage_error(
    run_lorafit, train_arguments, fail_in_step, tmp_path
):
    run_dir = tmp_path / "run"

    def remove(loss):
        shutil.rmtree(run_dir, ignore_errors=True)
        return loss

    fail_in_step(2, remove)
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 7
    assert f"{run_dir}: the checkpoint of step 2 could not be written" in outcome.err
    assert not run_dir.exists()


@pytest.mark.parametrize("what", ["adapter", "record"])
def test_f9_a_disk_that_fills_up_at_the_very_end_is_a_storage_error(
    run_lorafit, train_arguments, tmp_path, monkeypatch, what
):
    target = {
        "adapter": "lorafit.model.adapter.sync_file",
        "record": "lorafit.report.run_record.RunRecord.close",
    }[what]
    monkeypatch.setattr(target, lambda *_: raise_(OSError(28, "No space left on device")))
    outcome = run_lorafit(*train_arguments(tmp_path / "run"))
    assert outcome.code == 7
    assert "No space left on device" in outcome.err


# -- Signals, in processes of their own ----------------------------------------------------


def wait_for_step(process, run_dir, step):
    """Read stderr until a step is reported; returns what was read."""
    read = []
    for line in process.stderr:
        read.append(line)
        if line.startswith(f"step {step}/"):
            return "".join(read)
    raise AssertionError("".join(read))


LONG = {"max_steps": 400, "save_steps": 1000, "logging_steps": 1, "eval_steps": 1000}


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        signal.SIGINT,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_f3_f4_f7_a_signal_saves_and_the_same_command_goes_on(
    run_lorafit, train_arguments, tmp_path, number
):
    run_dir = tmp_path / "run"
    arguments = train_arguments(run_dir, **LONG)
    process = start_lorafit(*arguments)
    wait_for_step(process, run_dir, 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert f"{number.name} received: saved at step " in err
    assert "hint: run the same command again to go on from there" in err
    (checkpoint,) = run_dir.glob("checkpoint-*")
    step = verify_checkpoint(checkpoint).step
    assert 3 <= step < 400
    assert record_of(run_dir)["status"] == "interrupted"


def test_f3_a_run_stopped_in_its_own_process_ends_as_if_it_never_had_been(
    run_lorafit, train_arguments, tmp_path
):
    changes = {"max_steps": 30, "logging_steps": 1, "save_steps": 100, "eval_steps": 100}
    # Sums over another number of threads have another order, and so other last bits.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = start_lorafit(*train_arguments(tmp_path / "run", **changes), **threads)
    wait_for_step(process, tmp_path / "run", 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    outcome = run_lorafit(*train_arguments(tmp_path / "run", **changes))
    assert outcome.code == 0, outcome.err
    assert "continuing from checkpoint-" in outcome.err
    assert run_lorafit(*train_arguments(tmp_path / "whole", **changes)).code == 0
    losses = [[e["loss"] for e in read_events(tmp_path / name)] for name in ("run", "whole")]
    assert losses[0] == losses[1]
    adapter = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / adapter).read_bytes() == (tmp_path / "whole" / adapter).read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_f4_a_second_signal_ends_at_once(train_arguments, tmp_path, number, code):
    run_dir = tmp_path / "run"
    process = start_lorafit(*train_arguments(run_dir, **LONG))
    wait_for_step(process, run_dir, 2)
    # Stopped while both arrive, so that no step can end between them.
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert not list(run_dir.glob("checkpoint-*"))


def test_f6_a_signal_before_the_first_step_leaves_nothing(train_arguments, tmp_path):
    process = start_lorafit(*train_arguments(tmp_path / "run", **LONG))
    os.set_blocking(process.stderr.fileno(), True)
    line = process.stderr.readline()
    assert line.startswith("Plan")
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode in (130, 75), err
    assert "Traceback" not in err
    assert not list((tmp_path / "run").glob("checkpoint-0"))
