"""The calibration step on a real, tiny run: it measures, is stored, and leaves no trace."""

import json
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lorafit.config.resolve import resolve_run
from lorafit.data.micro_batches import MicroBatchLimits
from lorafit.hardware.detect import detect_device, planned_device
from lorafit.hardware.info import Choice
from lorafit.memory.calibration import Combination, add_measurement, read_record
from lorafit.model.build import add_adapter, load_base
from lorafit.model.step import trainable_parameters
from lorafit.training.guard import calibrate as calibration
from lorafit.training.guard.calibrate import calibrate, longest_together, should_calibrate
from lorafit.training.guard.memory_use import CudaProbe, ProcessProbe, memory_probe
from lorafit.training.planning.plan import plan_run
from lorafit.training.run import run_training
from lorafit.units import MIB

pytestmark = pytest.mark.usefixtures("quiet_libraries")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def plan(tiny_model, tiny_data, tmp_path):
    def plan(name="run", **flags):
        device = detect_device("cpu")
        given = {
            "model": str(tiny_model("phi")), "data": str(tiny_data), "max_length": "64",
            "output_dir": str(tmp_path / name), "device": "cpu", "lora_dropout": "0.1",
            "per_device_train_batch_size": "2", "gradient_accumulation_steps": "2",
            "max_steps": "3", "save_steps": "3", "learning_rate": "0.01", **flags,
        }  # fmt: skip
        resolved = resolve_run(
            preset=None, config_file=None, overrides=(), flags=given, environ={}, device=device
        )
        return plan_run(resolved, device)

    return plan


def build(plan):
    base = load_base(plan.settings, plan.source, torch.float32, CPU)
    return add_adapter(base, plan.settings)[0]


def test_measured_stored_and_believed_by_the_next_estimate(plan):
    first = plan()
    assert not first.estimate.calibrated
    found = calibrate(first, build(first), CPU, ProcessProbe())
    assert found.measured.process_bytes > 100 * MIB
    assert add_measurement(Combination.of(first.device, first.settings.kernels), found) is None
    second = plan()
    assert second.estimate.calibrated
    assert second.as_dict()["memory"]["calibrated"] is True
    # For the run that was measured, the corrected estimate is the measurement.
    assert second.estimate.peak.process_bytes == max(
        found.measured.process_bytes, second.estimate.peak.reserved_bytes
    )
    third = calibrate(second, build(second), CPU, ProcessProbe())
    assert third.predicted == found.predicted


def test_step_leaves_adapters_gradients_and_generators_as_they_were(plan):
    planned = plan()
    model = build(planned).eval()
    before = [parameter.detach().clone() for parameter in trainable_parameters(model)]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    calibrate(planned, model, CPU, ProcessProbe())
    after = trainable_parameters(model)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert not model.training


def test_training_is_bit_equal_with_and_without_it(plan, monkeypatch):
    def train(name):
        result = run_training(plan(name))
        lines = (result.run_dir / "events.jsonl").read_text().splitlines()
        steps = [(e["loss"], e["grad_norm"]) for e in map(json.loads, lines) if "loss" in e]
        notes = json.loads((result.run_dir / "run.json").read_text())["notes"]
        return (result.adapter / "adapter_model.safetensors").read_bytes(), steps, notes

    plain = train("plain")
    choice = Choice(True, "calibration step: asked for by a test")
    monkeypatch.setattr(calibration, "should_calibrate", lambda plan: choice)
    calibrated = train("calibrated")
    assert calibrated[:2] == plain[:2]
    assert len(plain[1]) == 3
    assert choice.reason in calibrated[2]
    assert any("measured less predicted: context " in note for note in calibrated[2])
    combination = Combination.of(detect_device("cpu"), "lorafit")
    sources = [m.source for m in read_record(combination).measurements]
    assert sources == ["finished run", "calibration step", "finished run"]


def test_step_that_runs_out_of_memory_is_a_note(plan, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    planned, notes = plan(), []
    monkeypatch.setattr(calibration, "should_calibrate", lambda plan: Choice(True, "asked for"))
    monkeypatch.setattr(calibration, "training_step", fail)
    calibration.calibrate_if_new(planned, build(planned), CPU, notes.append)
    assert notes[-1] == "the calibration step ran out of memory: nothing was learned from it"
    combination = Combination.of(planned.device, "lorafit")
    assert read_record(combination).measurements == ()


def test_step_runs_on_cuda_until_one_is_known_for_the_combination(plan):
    planned = plan()
    assert not should_calibrate(planned).value
    gpu = replace(planned_device("t4"), driver="580.1", detected=True)
    there = replace(planned, device=gpu)
    asked = should_calibrate(there)
    assert asked.value
    assert "none was measured yet on NVIDIA T4" in asked.reason
    found = calibrate(planned, build(planned), CPU, ProcessProbe())
    add_measurement(Combination.of(gpu, "lorafit"), found)
    known = should_calibrate(there)
    assert not known.value
    assert known.reason.startswith("calibrated: ")
    too_large = replace(there.estimate, verdict="exceeds")
    assert not should_calibrate(replace(there, estimate=too_large)).value


def test_the_largest_micro_batch_is_the_longest_rows_that_go_together():
    lengths = [3, 9, 4, 9, 8]
    assert longest_together(lengths, MicroBatchLimits(2)) == [1, 3]
    assert longest_together(lengths, MicroBatchLimits(2, 21)) == [1, 3, 0]
    assert longest_together(lengths, MicroBatchLimits(1, 5)) == [1]


@pytest.mark.parametrize("is_sampled", [False, True])
def test_process_probe_sees_memory_that_is_given_back_again(monkeypatch, is_sampled):
    if is_sampled:
        monkeypatch.setattr("lorafit.training.guard.memory_use._reset_peak_resident", lambda: False)
    probe = ProcessProbe()
    probe.start()
    quiet = probe.stop().process_bytes
    probe.start()
    held = torch.ones(40 * MIB // 4)
    held += 1
    deadline = time.monotonic() + 300
    while is_sampled and probe._peak - quiet < 30 * MIB and time.monotonic() < deadline:
        time.sleep(probe._INTERVAL_SECONDS)  # until a sample was taken
    del held
    busy = probe.stop().process_bytes
    assert 30 * MIB < busy - quiet < 200 * MIB


@pytest.mark.gpu
def test_cuda_probe_tells_tensors_cache_and_context_apart():
    device = torch.device("cuda:0")
    probe = memory_probe(device)
    assert isinstance(probe, CudaProbe)
    probe.start()
    held = torch.ones(256 * MIB // 4, device=device)
    product = held[: 1024 * 1024].view(1024, 1024) @ held[: 1024 * 1024].view(1024, 1024)
    del held, product
    peak = probe.stop()
    assert 256 * MIB <= peak.allocated_bytes <= peak.reserved_bytes
    if peak.process_bytes is not None:
        assert peak.process_bytes - peak.reserved_bytes > 50 * MIB
    probe.release()
    assert torch.cuda.max_memory_allocated(device) == torch.cuda.memory_allocated(device)
