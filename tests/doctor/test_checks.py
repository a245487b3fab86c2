import importlib.metadata
from dataclasses import replace

import pytest

from lorafit.doctor.checks import packages
from lorafit.doctor.fit import best_fit, fit_presets
from lorafit.doctor.isolated import ProofError, run_proof, run_proofs
from lorafit.doctor.report import recommend
from lorafit.hardware.cpu import CgroupLimits, CpuReading
from lorafit.hardware.detect import planned_device
from lorafit.hardware.mps import AppleReading
from lorafit.model.architectures import bundled_config
from lorafit.units import GIB, MIB

from .conftest import A10, T4

M3 = AppleReading("Apple M3 Pro", 18 * GIB, (14, 5), 13 * GIB, 12 * GIB)


def test_ranges_come_from_the_package_metadata():
    torch = packages.declared_requirements()["torch"]
    assert not torch.specifier.contains("2.9.1")
    assert packages.required_range("tokenizers").specifier


def test_package_outside_the_range_is_an_error_with_the_pip_line(monkeypatch, run_check):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.40.0")
    outcome = run_check("pkg.transformers")
    assert outcome.status == "error"
    assert outcome.measured == "4.40.0"
    assert outcome.commands[0].startswith('pip install -U "transformers')
    assert ">=5" in outcome.commands[0]


def test_missing_package_is_an_error(run_check, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert run_check("pkg.peft").status == "error"
    assert run_check("pkg.bitsandbytes").status == "warn"


def test_installed_packages_are_in_range(run_check):
    for name in ("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers"):
        assert run_check(f"pkg.{name}").status == "ok", name


def test_cpu_only_torch_beside_a_gpu_is_an_error(run_check):
    outcome = run_check("pkg.torch_build", A10, cuda=None)
    assert outcome.status == "error"
    assert "--index-url https://download.pytorch.org/whl/cu" in outcome.commands[0]
    assert run_check("pkg.torch_build", A10).status == "ok"
    assert run_check("pkg.torch_build", cuda=None).status == "ok"


def test_four_bit_failure_is_a_warning_with_the_cause(run_check):
    outcome = run_check("pkg.bitsandbytes", python="/bin/false")
    assert outcome.status == "warn"
    assert "exit code 1" in outcome.detail
    assert "--quantization none" in outcome.fix


def test_proof_whose_process_dies_names_the_signal(tmp_path):
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dying.chmod(0o755)
    with pytest.raises(ProofError, match="SIGSEGV"):
        run_proof("matmul", "cpu", str(dying), 60)


@pytest.mark.parametrize(
    ("driver", "wheel"), [("535.129.03", "cu126"), ("575.57", "cu128"), ("580.65.06", "cu130")]
)
def test_pip_line_has_the_newest_cuda_that_the_driver_runs(run_check, driver, wheel):
    outcome = run_check("pkg.torch_build", A10, cuda=None, driver=driver)
    assert outcome.commands[0].endswith(f"/whl/{wheel}")


def test_proof_that_runs_out_of_time_is_not_called_broken(run_check, tmp_path):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 20\n")
    hanging.chmod(0o755)
    outcome = run_check("pkg.bitsandbytes", python=str(hanging), timeout_seconds=0.3)
    assert outcome.status == "warn"
    assert "was not proved to work" in outcome.detail


def test_a_proof_that_kills_its_process_costs_no_other_proof(tmp_path):
    script = """#!/bin/sh
case $3 in
  matmul,*) echo '{"proof": "matmul", "relative_error": 0.001}'; kill -SEGV $$;;
  repeat,*) echo a word of a library; kill -ABRT $$;;
  four-bit) echo '{"proof": "four-bit", "failure": "OSError: no library"}';;
esac
"""
    dying = tmp_path / "python"
    dying.write_text(script)
    dying.chmod(0o755)
    answers = run_proofs(["matmul", "repeat", "four-bit"], "cpu", str(dying), 60)
    assert answers["matmul"]["relative_error"] == 0.001
    assert "SIGSEGV" in str(answers["repeat"])
    assert "no library" in str(answers["four-bit"])


def test_proof_that_hangs_is_ended(tmp_path):
    hanging = tmp_path / "python"
    hanging.write_text("#!/bin/sh\nexec sleep 20\n")
    hanging.chmod(0o755)
    with pytest.raises(ProofError, match=r"within 0.2 s"):
        run_proof("matmul", "cpu", str(hanging), 0.2)


def test_device_with_a_wrong_environment_is_an_error(run_check):
    outcome = run_check("device", A10, environ={"CUDA_VISIBLE_DEVICES": "3"})
    assert outcome.status == "error"
    assert "0: NVIDIA A10" in outcome.detail
    assert "CUDA_VISIBLE_DEVICES=0" in outcome.fix


def test_gpu_checks_are_skipped_where_there_is_no_gpu(run_check):
    for check_id in (
        "device.init", "gpu.driver", "gpu.memory", "gpu.health", "gpu.multi", "gpu.nccl",
        "mps.memory", "mps.fallback", "mps.bfloat16",
    ):  # fmt: skip
        assert run_check(check_id).status == "skip", check_id


@pytest.mark.parametrize(
    ("driver", "cuda", "status"),
    [("535.1", "12.6", "ok"), ("470.82", "12.6", "error"), ("570.1", "13.0", "error")],
)
def test_driver_must_fit_the_cuda_of_torch(run_check, driver, cuda, status):
    outcome = run_check("gpu.driver", A10, driver=driver, cuda=cuda)
    assert outcome.status == status
    # An older torch helps only where the driver runs an older CUDA at all.
    assert bool(outcome.commands) == (driver == "570.1")


def test_bfloat16_is_missing_on_turing_only(run_check):
    assert run_check("gpu.capability", T4).status == "warn"
    assert run_check("gpu.capability", A10).status == "ok"
    assert run_check("gpu.capability", apple=M3).status == "ok"


def test_busy_small_and_faulty_gpus_are_reported(run_check):
    assert run_check("gpu.memory", replace(A10, free_bytes=5 * GIB)).status == "warn"
    small = replace(A10, total_bytes=4 * GIB, reserved_bytes=0, free_bytes=4 * GIB)
    assert "--quantization nf4" in run_check("gpu.memory", small).commands[0]
    assert run_check("gpu.memory", A10).measured == "22.0 GiB free of 22.0 GiB"
    assert run_check("gpu.health", replace(A10, num_ecc_errors=1)).status == "error"
    assert run_check("gpu.health", A10).status == "ok"


def test_lifted_metal_limit_is_a_warning(run_check):
    lifted = {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "0.0"}
    assert run_check("mps.memory", apple=M3, environ=lifted).status == "warn"
    assert run_check("mps.memory", apple=M3).status == "ok"


@pytest.mark.parametrize(("threads", "status"), [("4", "ok"), ("64", "warn"), ("many", "warn")])
def test_omp_threads_must_fit_the_cores(run_check, threads, status):
    assert run_check("cpu.info", environ={"OMP_NUM_THREADS": threads}).status == status


def test_memory_limit_of_a_container_is_seen(run_check):
    limited = CpuReading("CPU", 4, 64 * GIB, 60 * GIB, True, CgroupLimits(None, 2 * GIB, 0))
    outcome = run_check("ram.total", cpu=limited)
    assert outcome.status == "warn"
    assert "of 2.00 GiB" in outcome.measured


def test_output_folder_that_is_a_file_is_an_error_and_nothing_is_left_behind(run_check, tmp_path):
    (tmp_path / "taken").write_text("x")
    assert run_check("disk.output", output_dir=tmp_path / "taken" / "run").status == "error"
    assert run_check("disk.output", output_dir=tmp_path / "new" / "run").status == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_full_disk_is_a_warning(run_check, monkeypatch):
    from lorafit.doctor.checks import system

    usage = type("usage", (), {"free": 100 * MIB})
    monkeypatch.setattr(system.shutil, "disk_usage", lambda path: usage)
    assert run_check("disk.output").status == "warn"
    assert run_check("disk.cache").status == "warn"
    assert run_check("shm.size").status in ("warn", "skip")


def test_unfinished_downloads_are_counted(run_check, tmp_path):
    blobs = tmp_path / "hf/hub/models--a--b/blobs"
    blobs.mkdir(parents=True)
    (blobs / "123.incomplete").write_bytes(b"x" * 2048)
    assert "1 unfinished" in run_check("disk.cache").detail


@pytest.mark.parametrize(
    ("environ", "status", "text"),
    [
        ({}, "ok", "huggingface.co (not contacted)"),
        ({"HF_HUB_OFFLINE": "1"}, "ok", "offline because HF_HUB_OFFLINE=1"),
        ({"HF_ENDPOINT": "http://mirror"}, "warn", "not an https:// address"),
    ],
)
def test_explains_the_offline_state(run_check, environ, status, text):
    outcome = run_check("net.offline", environ=environ)
    assert (outcome.status, text in outcome.detail) == (status, True)


def test_shipped_presets_load(run_check):
    outcome = run_check("preset.valid")
    assert outcome.status == "ok", outcome.detail
    assert "balanced" in outcome.detail


def test_damaged_preset_is_an_error(run_check, monkeypatch):
    from lorafit.config import presets
    from lorafit.errors import ConfigError, Problem

    def damaged():
        raise ConfigError([Problem("presets/low.yaml:3", "lora_r is 0")])

    monkeypatch.setattr(presets, "list_presets", damaged)
    outcome = run_check("preset.valid")
    assert outcome.status == "error"
    assert "presets/low.yaml:3" in outcome.detail


@pytest.mark.parametrize(
    ("hardware", "preset", "flags"),
    [("a10g", "balanced", ""), ("t4", "balanced", ""), ("m3-18gb", "balanced", ""),
     ("rtx-2080-ti", "memory-limited", "--quantization nf4"), ("cpu", "quick-test", "")],
)  # fmt: skip
def test_recommends_the_first_preset_that_fits_by_its_estimate(hardware, preset, flags):
    recommended = recommended_on(planned_device(hardware))
    assert recommended.preset == preset
    assert flags in (recommended.command or "")
    (entry,) = [found for found in recommended.presets if found.name == preset]
    if flags:
        assert entry.verdict == "exceeds"
    else:
        assert (entry.peak_bytes or 0) < entry.capacity_bytes
    assert recommended.reason


def test_recommends_nothing_where_nothing_fits():
    small = replace(planned_device("rtx-2080-ti"), usable_bytes=2 * GIB)
    recommended = recommended_on(small)
    assert (recommended.preset, recommended.command) == (None, None)
    assert "not with 4-bit weights either" in recommended.reason


def recommended_on(device):
    fits = fit_presets(device, bundled_config)
    return recommend(device, fits, best_fit(fits, device, bundled_config, None))


@pytest.mark.gpu
def test_this_gpu_multiplies_in_full_and_in_four_bit():
    from lorafit.doctor.check import load_checks
    from lorafit.doctor.probe import Probe

    probe = Probe(timeout_seconds=120.0)
    assert load_checks()["device.init"].run(probe).status == "ok"
    assert load_checks()["pkg.bitsandbytes"].run(probe).status == "ok"
    assert load_checks()["determinism"].run(probe).status == "ok"


@pytest.mark.mps
def test_this_mac_multiplies():
    from lorafit.doctor.check import load_checks
    from lorafit.doctor.probe import Probe

    probe = Probe(timeout_seconds=120.0)
    assert load_checks()["device.init"].run(probe).status == "ok"
    assert load_checks()["determinism"].run(probe).status in ("ok", "warn")
