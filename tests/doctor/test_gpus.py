"""Health of NVIDIA GPUs, several of them, and 16 bit on Apple GPUs."""

from dataclasses import replace

import pytest

from lorafit.doctor.check import load_checks
from lorafit.doctor.isolated import ProofError, ProofTimeoutError, prove_bfloat16, run_proofs
from lorafit.doctor.probe import proofs_for
from lorafit.hardware.gpu_state import GpuState
from lorafit.hardware.mps import AppleReading
from lorafit.units import GIB

from .conftest import A10, T4

M3 = AppleReading("Apple M3 Pro", 18 * GIB, (14, 5), 13 * GIB, 12 * GIB)
COOL = replace(A10, state=GpuState(61, 90))


@pytest.fixture
def run_with_proof(make_probe):
    """Run a check on a made-up machine whose proof came to a given answer."""

    def run(check_id, proof, answer, *gpus, **machine):
        probe = make_probe(*gpus, **machine)
        assert proof in proofs_for(probe.device())
        probe._memory["proofs"] = {proof: answer}
        return load_checks()[check_id].run(probe)

    return run


# -- Health --------------------------------------------------------------------------------


def test_the_temperature_of_every_gpu_is_told(run_check):
    outcome = run_check("gpu.health", COOL, T4)
    assert outcome.status == "ok"
    assert outcome.measured == "GPU 0 61 °C, slows down at 90 °C; GPU 1 temperature unknown"
    assert outcome.measured in outcome.detail


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (GpuState(91, 90, ("the hardware, for heat",)),
         "GPU 1 is slowed down by the hardware, for heat (91 °C, slows down at 90 °C)"),
        (GpuState(None, None, ("the power supply", "the driver, for heat")),
         "GPU 1 is slowed down by the power supply and the driver, for heat (temperature unknown)"),
        (GpuState(86, 90), "GPU 1 is about to slow down: 86 °C, slows down at 90 °C"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_slowed_down_or_nearly_too_hot_is_a_warning(run_check, state, words):
    outcome = run_check("gpu.health", COOL, replace(A10, state=state))
    assert (outcome.status, outcome.detail) == ("warn", words)
    assert "GPU 0 61 °C" in outcome.measured
    assert outcome.commands == ("nvidia-smi -q -d TEMPERATURE,PERFORMANCE",)


def test_memory_errors_weigh_more_than_heat(run_check):
    hot = replace(A10, state=GpuState(99, 90), num_ecc_errors=3)
    assert run_check("gpu.health", hot).status == "error"


def test_mig_is_told_where_it_is_on(run_check):
    assert run_check("gpu.health", replace(COOL, mig_enabled=True)).detail.startswith("MIG is on")


# -- Several GPUs --------------------------------------------------------------------------


def test_pairs_without_a_direct_way_are_named_and_are_no_warning(run_check):
    outcome = run_check("gpu.multi", A10, A10, A10, pairs=((0, 1), (0, 2)))
    assert outcome.status == "ok"
    assert "no direct way between 0-1, 0-2: gradients go through" in outcome.detail
    every = tuple((left, right) for right in range(5) for left in range(right))
    assert "2-3 and 4 more: gradients" in run_check("gpu.multi", *[A10] * 5, pairs=every).detail
    assert "no direct way" in run_check("gpu.multi", A10, T4, pairs=((0, 1),)).detail


def test_a_single_gpu_is_not_asked_to_work_with_others(run_check, make_probe):
    outcome = run_check("gpu.nccl", A10)
    assert (outcome.status, "one NVIDIA GPU" in outcome.detail) == ("skip", True)
    assert "nccl" not in proofs_for(make_probe(A10).device())
    hidden = make_probe(A10, A10, environ={"CUDA_VISIBLE_DEVICES": "1"})
    assert load_checks()["gpu.nccl"].run(hidden).status == "skip"


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ({"gpus": 2, "wrong_gpus": [], "version": "2.27.3"}, "ok", "NCCL 2.27.3, 2 GPUs: a sum"),
        ({"gpus": 2, "wrong_gpus": [1], "version": "2.27.3"}, "error", "is wrong on GPU 1"),
        (ProofTimeoutError("no answer within 9 s"), "warn", "not proved to work together"),
        (ProofError("ended by SIGBUS"), "error", "do not work together: ended by SIGBUS"),
    ],
)
def test_gpus_that_do_not_sum_together_are_reported(run_with_proof, answer, status, text):
    outcome = run_with_proof("gpu.nccl", "nccl", answer, A10, A10)
    assert (outcome.status, text in outcome.detail) == (status, True)
    assert bool(outcome.commands) == (status != "ok")


def test_the_proof_that_is_likeliest_to_hang_comes_last(make_probe):
    assert proofs_for(make_probe(A10, A10).device())[-1] == "nccl"


# -- Metal ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ({"relative_error": 2e-3, "autocast_dtype": "bfloat16"}, "ok", "2.0e-03"),
        ({"relative_error": 0.4, "autocast_dtype": "bfloat16"}, "error", "multiplies wrongly"),
        ({"relative_error": float("nan"), "autocast_dtype": "bfloat16"}, "error", "nan"),
        ({"relative_error": 2e-3, "autocast_dtype": "float32"}, "warn", "computes in float32"),
        (ProofTimeoutError("no answer within 9 s"), "warn", "not tried"),
        (ProofError("TypeError: no BFloat16"), "error", "does not compute in bfloat16: TypeError"),
    ],
)
def test_metal_is_tried_in_bfloat16_and_under_autocast(run_with_proof, answer, status, text):
    if isinstance(answer, dict):
        answer = {"version": "2.13.0", **answer}
    outcome = run_with_proof("mps.bfloat16", "bfloat16", answer, apple=M3)
    assert (outcome.status, text in outcome.detail) == (status, True)
    assert bool(outcome.commands) == (status != "ok")


def test_a_macos_without_bfloat16_is_not_tried(run_check, make_probe):
    old = replace(M3, macos=(13, 6))
    assert "no bfloat16 in Metal" in run_check("mps.bfloat16", apple=old).detail
    assert "bfloat16" not in proofs_for(make_probe(apple=old).device())


def test_the_proof_multiplies_in_bfloat16_for_real_here():
    answer = prove_bfloat16("cpu")
    assert 1e-4 < answer["relative_error"] < 0.02
    assert answer["autocast_dtype"] == "bfloat16"


def test_a_device_that_is_not_here_fails_its_proof_and_no_other():
    import sys

    answers = run_proofs(["bfloat16", "nccl"], "cpu", sys.executable, 300)
    assert answers["bfloat16"]["autocast_dtype"] == "bfloat16"
    nccl = answers["nccl"]
    assert isinstance(nccl, ProofError) or nccl["wrong_gpus"] == []


@pytest.mark.mps
def test_this_mac_computes_in_bfloat16():
    from lorafit.doctor.probe import Probe

    probe = Probe(timeout_seconds=300.0)
    assert load_checks()["mps.bfloat16"].run(probe).status in ("ok", "skip")


@pytest.mark.gpu
def test_the_gpus_of_this_machine_work_together():
    from lorafit.doctor.probe import Probe

    probe = Probe(timeout_seconds=300.0)
    assert load_checks()["gpu.nccl"].run(probe).status in ("ok", "skip")
    assert load_checks()["gpu.health"].run(probe).status != "skip"
