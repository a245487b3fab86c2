"""Checks of packages, GPUs, Metal, file system, limits, network and runs on made-up machines."""

import importlib.metadata
import json
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lorafit.config.presets import preset_names
from lorafit.doctor.checks import conflicts, filesystem, network
from lorafit.doctor.isolated import ProofError, ProofTimeoutError
from lorafit.doctor.question import Question
from lorafit.hardware.cpu import CpuReading
from lorafit.hardware.mps import AppleReading
from lorafit.units import GIB

from .conftest import A10, T4

M3 = AppleReading("Apple M3 Pro", 18 * GIB, (14, 5), 13 * GIB, 12 * GIB)
DEEP = Question(is_deep=True)


# -- Packages ------------------------------------------------------------------------------


def test_a_file_that_hides_a_library_is_named_with_the_line_that_renames_it(run_check, tmp_path):
    (tmp_path / "datasets.py").write_text("")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    outcome = run_check("pkg.conflicts", working_folder=tmp_path)
    assert outcome.status == "warn"
    assert "datasets.py or datasets/" in outcome.detail
    assert "torch/" in outcome.detail
    assert outcome.commands == ("mv datasets.py my_datasets.py",)


def test_a_package_that_patches_others_is_named(run_check, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    outcome = run_check("pkg.conflicts", working_folder=tmp_path)
    assert outcome.status == "warn"
    assert "xformers is installed" in outcome.detail
    assert outcome.commands[-1].startswith("pip uninstall kernels")


def test_installed_packages_fit_each_other(run_check):
    assert run_check("pkg.mutual").status == "ok"


def test_a_package_that_is_too_old_for_another_is_named(run_check, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(
        conflicts.importlib.metadata,
        "version",
        lambda name: "0.0.1" if name.lower() == "numpy" else real(name),
    )
    outcome = run_check("pkg.mutual")
    assert outcome.status == "warn"
    assert "numpy" in outcome.detail
    assert "0.0.1 is installed" in outcome.detail


# -- GPUs and Metal ------------------------------------------------------------------------


def test_unlike_gpus_are_a_warning_that_names_the_largest(run_check):
    assert run_check("gpu.multi", A10).status == "skip"
    assert run_check("gpu.multi", A10, A10).status == "ok"
    outcome = run_check("gpu.multi", T4, A10)
    assert outcome.status == "warn"
    assert outcome.commands == ("export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1",)
    chosen = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
    assert run_check("gpu.multi", T4, A10, environ=chosen).status == "ok"


@pytest.mark.parametrize(("value", "status"), [("", "ok"), ("0", "ok"), ("1", "warn")])
def test_operations_that_leave_metal_unseen_are_a_warning(run_check, value, status):
    environ = {"PYTORCH_ENABLE_MPS_FALLBACK": value}
    outcome = run_check("mps.fallback", apple=M3, environ=environ)
    assert (outcome.status, outcome.measured) == (status, "macOS 14.5")


def test_every_preset_is_estimated_for_the_gpu_that_is_here(run_check):
    outcome = run_check("gpu.fit", A10)
    assert outcome.status == "ok", outcome.detail
    assert f" of {len(preset_names())} fit: balanced " in outcome.detail
    assert outcome.measured.startswith("balanced takes ")


def test_presets_of_a_family_are_estimated_with_their_own_model_and_counted(make_probe):
    probe = make_probe(replace(A10, total_bytes=10 * GIB, reserved_bytes=0, free_bytes=10 * GIB))
    fits = {fit.preset: fit for fit in probe.fits()}
    families = [name for name in fits if "/" in name]
    if not families:
        pytest.skip("no preset belongs to a family")
    from lorafit.config.presets import load_preset

    for name in families:
        own = load_preset(name).settings.get("model", "microsoft/phi-2")
        if own != "microsoft/phi-2" and "7B" in str(own):
            # 7 billion parameters in 16 bit take 13 GiB: Phi-2's shape would have fitted.
            quantized = load_preset(name).settings.get("quantization", "none") != "none"
            assert (fits[name].verdict in ("fits", "tight")) <= quantized, name


def test_a_small_gpu_is_told_to_take_four_bits_and_a_tiny_one_that_nothing_fits(run_check):
    small = replace(A10, total_bytes=7 * GIB, reserved_bytes=0, free_bytes=7 * GIB, name="Small")
    outcome = run_check("gpu.fit", replace(small, total_bytes=5 * GIB, free_bytes=5 * GIB))
    assert outcome.status == "warn"
    assert outcome.commands == (
        "lorafit train --preset memory-limited --quantization nf4 --data FILE",
    )
    tiny = replace(small, total_bytes=GIB, free_bytes=GIB)
    outcome = run_check("gpu.fit", tiny)
    assert outcome.status == "error"
    assert "too large balanced" in outcome.detail


def test_memory_that_others_hold_is_a_warning_although_the_preset_fits(run_check):
    outcome = run_check("gpu.fit", replace(A10, free_bytes=2 * GIB))
    assert outcome.status == "warn"
    assert "only 2.00 GiB are free now" in outcome.detail


def test_presets_are_estimated_for_a_mac(run_check):
    outcome = run_check("gpu.fit", apple=M3)
    assert outcome.status == "ok"
    assert "12.0 GiB" in outcome.required


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ({"different": 0, "of": 1024}, "ok", "0 of 1024"),
        ({"different": 3, "of": 1024}, "warn", "3 of 1024"),
        (ProofTimeoutError("no answer within 1 s"), "warn", "not tried"),
        (ProofError("the process was ended by SIGSEGV"), "warn", "SIGSEGV"),
    ],
)
def test_numbers_that_differ_between_two_equal_gradients_are_a_warning(
    make_probe, monkeypatch, answer, status, text
):
    from lorafit.doctor.check import load_checks

    probe = make_probe(A10)
    probe._memory["proofs"] = {"repeat": answer}
    outcome = load_checks()["determinism"].run(probe)
    assert (outcome.status, text in outcome.detail) == (status, True)


# -- System --------------------------------------------------------------------------------


def test_the_file_system_of_the_output_folder_is_tried_and_left_as_it_was(run_check, tmp_path):
    outcome = run_check("disk.semantics", output_dir=tmp_path / "a" / "b")
    assert outcome.status == "ok"
    assert "atomic rename" in outcome.detail
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_an_error(run_check, monkeypatch):
    def refuse(folder):
        raise OSError(95, "not supported")

    monkeypatch.setitem(filesystem._TRIALS, "file lock", refuse)
    outcome = run_check("disk.semantics")
    assert outcome.status == "error"
    assert "there is no file lock" in outcome.detail
    assert outcome.measured == "3 of 4 work"


def test_few_open_files_are_a_warning_with_the_ulimit_line(run_check, monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda what: (128, 128))
    outcome = run_check("limits.files")
    assert (outcome.status, outcome.commands) == ("warn", ("ulimit -n 4096",))
    monkeypatch.setattr(resource, "getrlimit", lambda what: (-1, -1))
    assert run_check("limits.files").measured == "unlimited open files, unlimited processes"


def test_a_clock_before_the_first_release_is_an_error(run_check, monkeypatch):
    class Epoch(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(1970, 1, 1, tzinfo=UTC)

    assert run_check("clock").status == "ok"
    monkeypatch.setattr(network, "datetime", Epoch)
    outcome = run_check("clock")
    assert outcome.status == "error"
    assert "1970" in outcome.detail
    assert "timedatectl" in outcome.commands[0]


# -- The hub -------------------------------------------------------------------------------


def test_the_network_is_left_alone_without_deep_and_when_offline(run_check):
    assert run_check("net.hub").status == "skip"
    assert (
        "HF_HUB_OFFLINE"
        in run_check("net.hub", question=DEEP, environ={"HF_HUB_OFFLINE": "1"}).detail
    )


def test_a_hub_that_answers_is_timed_and_one_that_does_not_is_a_warning(run_check):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        here = {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}
        outcome = run_check("net.hub", question=DEEP, environ=here)
        assert outcome.status == "ok"
        assert outcome.measured.endswith(" ms")
    with socket.socket() as silent:
        # Bound and not listening: nobody else can answer at this port.
        silent.bind(("127.0.0.1", 0))
        here = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        outcome = run_check("net.hub", question=DEEP, environ=here)
    assert outcome.status == "warn"
    assert "export HF_HUB_OFFLINE=1" in outcome.commands


def test_a_server_that_speaks_no_tls_is_an_error_about_its_certificate(run_check):
    import http.server
    import threading

    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        here = {"HF_ENDPOINT": f"https://127.0.0.1:{server.server_port}"}
        outcome = run_check("net.hub", question=DEEP, environ=here)
    finally:
        server.shutdown()
        server.server_close()
    assert outcome.status == "error"
    assert "certificate" in outcome.detail


def test_a_token_that_others_can_read_is_a_warning_and_its_value_is_never_shown(
    run_check, tmp_path
):
    assert run_check("auth.token").measured == "none"
    token = tmp_path / "hf" / "token"
    token.parent.mkdir()
    token.write_text("hf_notarealtokenatall")
    os.chmod(token, 0o644)
    outcome = run_check("auth.token")
    assert (outcome.status, outcome.measured) == ("warn", "644")
    assert outcome.commands == (f"chmod 600 {token}",)
    os.chmod(token, 0o600)
    assert run_check("auth.token").status == "ok"
    outcome = run_check("auth.token", environ={"HF_TOKEN": "hf_notarealtokenatall\n"})
    assert outcome.status == "warn"
    assert "notareal" not in repr(outcome)


# -- Earlier runs --------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    from lorafit.training.checkpoints.checkpoint import write_checkpoint

    run = tmp_path / "outputs" / "first"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"run_id": "a"}))
    write_checkpoint(run, 1, "a", lambda folder: (folder / "weights").write_bytes(b"abc") and None)
    return run


def test_whole_checkpoints_are_verified(run_check, run_folder):
    assert run_check("runs", output_dir=run_folder.parent / "none").status == "skip"
    for folder in (run_folder, run_folder.parent):
        outcome = run_check("runs", output_dir=folder)
        assert outcome.status == "ok", outcome.detail
        assert outcome.measured == "1 of 1 checkpoints verified"


def test_damage_and_leftovers_are_named_and_nothing_is_deleted(run_check, run_folder):
    (run_folder / "checkpoint-1" / "weights").write_bytes(b"abd")
    staging = run_folder / ".staging-checkpoint-2"
    staging.mkdir()
    (staging / "half").write_bytes(b"x" * 2048)
    outcome = run_check("runs", output_dir=run_folder.parent)
    assert outcome.status == "warn"
    assert "checkpoint-1" in outcome.detail
    assert "1 leftovers of killed saves hold 2.00 KiB" in outcome.detail
    assert outcome.commands == (f"rm -r {staging}",)
    assert staging.is_dir()


def test_the_cpu_of_a_made_up_machine_is_recommended_for_proof_only(run_check):
    cpu = CpuReading("CPU", 4, 64 * GIB, 60 * GIB, True)
    assert run_check("gpu.fit", cpu=cpu).status == "ok"
