import os
from dataclasses import replace

import pytest

from lorafit.errors import DeviceError, ExitCode, UsageError
from lorafit.hardware.cpu import CpuReading
from lorafit.hardware.cuda import Gpu, GpuReport, read_nvml
from lorafit.hardware.detect import Sources, detect_device, planned_device
from lorafit.hardware.mps import AppleReading
from lorafit.hardware.torch_build import parse_torch_version
from lorafit.units import GIB, MIB

from .recorded import (
    A10,
    A100,
    A100_MIG,
    T4,
    TORCH_CPU,
    TORCH_CUDA,
    Board,
    RecordedNvml,
)

CPU = CpuReading("AMD EPYC 9R14", 8, 32 * GIB, 30 * GIB, True)
M3 = AppleReading("Apple M3 Pro", 18 * GIB, (14, 5), 13 * GIB, 12 * GIB)


def sources(*boards: Board, environ=None, torch_text=TORCH_CUDA, apple=None, torch_cuda=None):
    nvml = RecordedNvml(list(boards), has_driver=bool(boards))
    return Sources(
        nvml=lambda: read_nvml(nvml),
        torch_build=lambda: parse_torch_version(torch_text),
        torch_cuda=lambda: torch_cuda,
        apple=lambda: apple,
        cpu=lambda: CPU,
        environ=environ or {},
    )


def test_auto_takes_cuda_first_and_says_why():
    device = detect_device(sources=sources(A10, apple=M3))
    assert (device.kind, device.torch_device, device.catalog_key) == ("cuda", "cuda:0", "a10")
    assert device.usable_bytes == (23_028 - 517) * MIB
    assert device.compute_capability == (8, 6)
    assert device.supports_bfloat16
    assert device.driver == "535.129.03"
    assert device.warnings == ()
    assert "found through NVML" in device.reason
    assert "CUDA is the fastest" in device.reason


def test_auto_takes_mps_when_there_is_no_nvidia_gpu():
    device = detect_device(sources=sources(apple=M3))
    assert (device.kind, device.catalog_key) == ("mps", "m3-18gb")
    assert device.usable_bytes == 12 * GIB
    assert "no NVIDIA GPU" in device.reason


def test_auto_falls_back_to_the_cpu_and_says_why_not_the_others():
    device = detect_device(sources=sources())
    assert (device.kind, device.num_cpu_cores) == ("cpu", 8)
    assert "no NVIDIA GPU or driver" in device.reason
    assert "not a Mac" in device.reason


def test_old_driver_without_memory_version_2_still_gives_a_device():
    nvml = RecordedNvml([T4], knows_memory_v2=False, driver="470.82.01")
    report = read_nvml(nvml)
    assert report is not None
    assert report.gpus[0].usable_bytes == 15_360 * MIB
    assert report.gpus[0].free_bytes == (15_360 - 448) * MIB
    assert nvml.num_open == 0


def test_t4_has_its_real_capacity_and_no_bfloat16():
    device = detect_device(sources=sources(T4))
    assert device.usable_bytes == 14_912 * MIB
    assert not device.supports_bfloat16


def test_index_counts_visible_gpus():
    device = detect_device(
        "cuda:1", sources=sources(T4, A10, environ={"CUDA_VISIBLE_DEVICES": "1,0"})
    )
    assert (device.name, device.index, device.num_devices) == ("Tesla T4", 1, 2)


def test_different_gpus_warn_about_the_order_unless_it_is_fixed():
    assert any(
        "CUDA_DEVICE_ORDER" in text for text in detect_device(sources=sources(T4, A10)).warnings
    )
    ordered = sources(T4, A10, environ={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert detect_device(sources=ordered).warnings == ()


@pytest.mark.parametrize("value", ["GPU-749a4951", A10.uuid, "1"])
def test_visible_devices_takes_indexes_uuids_and_their_beginnings(value):
    device = detect_device(sources=sources(T4, A10, environ={"CUDA_VISIBLE_DEVICES": value}))
    assert (device.name, device.index) == ("NVIDIA A10", 0)


def test_visible_devices_ends_at_minus_one():
    device = detect_device(sources=sources(T4, A10, environ={"CUDA_VISIBLE_DEVICES": "1,-1,0"}))
    assert (device.name, device.num_devices) == ("NVIDIA A10", 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "hides every GPU"),
        ("-1", "hides every GPU"),
        ("0,", "an empty entry"),
        ("7", "asks for GPU 7"),
        ("zero", "neither an index nor a UUID"),
        ("GPU-ffff", "fits no GPU"),
        ("GPU-", "fits several GPUs"),
        ("0,0", "names a GPU twice"),
        ("0;1", "neither an index nor a UUID"),
    ],
)
@pytest.mark.parametrize("requested", ["auto", "cuda", "cuda:0"])
def test_wrong_visible_devices_lists_the_gpus_and_the_variable(value, message, requested):
    with pytest.raises(DeviceError, match=message) as caught:
        detect_device(requested, sources=sources(T4, A10, environ={"CUDA_VISIBLE_DEVICES": value}))
    assert caught.value.exit_code == ExitCode.DEVICE
    assert "CUDA_VISIBLE_DEVICES" in str(caught.value)
    assert "0: Tesla T4 (14.6 GiB), 1: NVIDIA A10 (22.0 GiB)" in str(caught.value)


def test_mig_slice_is_taken_for_what_it_is():
    uuid = A100_MIG.slices[1].uuid
    device = detect_device(sources=sources(A100_MIG, environ={"CUDA_VISIBLE_DEVICES": uuid}))
    assert device.usable_bytes == 4_864 * MIB
    assert device.catalog_key is None
    assert any("MIG slice" in text for text in device.warnings)


def test_gpu_with_mig_on_gives_its_first_slice():
    device = detect_device(sources=sources(A100_MIG))
    assert device.name.endswith("MIG 3g.20gb")
    assert device.supports_bfloat16


def test_missing_gpu_index_lists_those_there_are():
    with pytest.raises(DeviceError, match=r"no GPU 7; here: 0: NVIDIA A100-SXM4-80GB") as caught:
        detect_device("cuda:7", sources=sources(A100))
    assert caught.value.exit_code == ExitCode.DEVICE
    assert "cuda:0" in (caught.value.hint or "")


def test_cpu_only_torch_beside_a_gpu_warns_with_the_pip_line():
    device = detect_device(sources=sources(A10, torch_text=TORCH_CPU))
    assert device.kind == "cpu"
    assert "NVIDIA A10" in device.warnings[0]
    assert 'pip install --force-reinstall "torch==2.13.0" --index-url' in device.warnings[0]


def test_cpu_only_torch_refuses_explicit_cuda_with_the_pip_line():
    with pytest.raises(DeviceError, match="built without CUDA") as caught:
        detect_device("cuda", sources=sources(A10, torch_text=TORCH_CPU))
    assert "download.pytorch.org/whl/cu126" in (caught.value.hint or "")  # driver 535


def test_explicit_cuda_and_mps_are_refused_where_they_are_not():
    for requested in ("cuda", "cuda:0", "mps"):
        with pytest.raises(DeviceError, match=f"{requested} cannot be used") as caught:
            detect_device(requested, sources=sources())
        assert caught.value.exit_code == ExitCode.DEVICE


def test_torch_answers_when_nvml_is_missing():
    report = GpuReport(
        (Gpu("NVIDIA A10G", 22_587 * MIB, 0, 22_000 * MIB, capability=(8, 6)),),
        "torch.cuda",
        is_filtered=True,
    )
    device = detect_device(sources=sources(torch_cuda=report))
    assert device.catalog_key == "a10g"
    assert "found through torch.cuda" in device.reason


def test_other_processes_and_ecc_errors_become_warnings():
    busy = Board(
        "Tesla T4", "GPU-1", 15_360, 448, 6_000, (7, 5), ((4321, 5_900), (99, None)), (), 2
    )
    warnings = " | ".join(detect_device(sources=sources(busy)).warnings)
    assert "4321 (5.76 GiB), 99 (size unknown)" in warnings
    assert "2 uncorrected memory (ECC) errors" in warnings


def test_own_process_is_no_other_process():
    own = Board("Tesla T4", "GPU-1", 15_360, 448, 200, (7, 5), ((os.getpid(), 150),))
    assert detect_device(sources=sources(own)).warnings == ()


def test_mac_whose_torch_lacks_metal_trains_on_the_cpu_with_a_warning():
    blocked = AppleReading("Apple M3 Pro", 18 * GIB, (14, 5), GIB, None, "torch has no Metal")
    device = detect_device(sources=sources(apple=blocked))
    assert device.kind == "cpu"
    assert "torch has no Metal" in device.warnings[0]


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "", "cuda:99999"])
def test_unknown_device_names_are_usage_errors(name):
    with pytest.raises(UsageError, match="is not a device") as caught:
        detect_device(name, sources=sources(A10))
    assert caught.value.exit_code == ExitCode.USAGE


def test_planned_device_comes_from_the_catalog():
    device = planned_device("A100-40GB")
    assert (device.kind, device.free_bytes, device.detected) == ("cuda", None, False)
    assert "--hardware a100-40gb" in device.reason


def test_planned_cpu_is_this_one_and_auto_detects():
    assert planned_device("cpu", sources=sources()).usable_bytes == 32 * GIB
    assert planned_device("auto", sources=sources(A10)).name == "NVIDIA A10"


def test_this_machine_gives_a_device_without_importing_torch(run_python):
    code = (
        "import sys; from lorafit.hardware.detect import detect_device;"
        "device = detect_device('cpu'); assert device.usable_bytes > 2**28, device;"
        "assert 'torch' not in sys.modules"
    )
    run_python(code)


@pytest.mark.gpu
def test_nvml_agrees_with_torch_on_this_gpu():
    import torch

    device = detect_device("cuda")
    free_bytes, total_bytes = torch.cuda.mem_get_info(0)
    assert device.usable_bytes == pytest.approx(total_bytes, rel=0.01)
    assert device.compute_capability == torch.cuda.get_device_capability(0)
    assert device.free_bytes >= free_bytes * 0.95


@pytest.mark.mps
def test_metal_budget_is_at_least_what_the_catalog_says():
    device = detect_device("mps")
    assert device.catalog_key is not None
    assert device.usable_bytes >= planned_device(device.catalog_key).usable_bytes * 0.99


# -- Temperature, slowdowns, ways between GPUs ---------------------------------------------


def test_temperature_and_slowdowns_are_read_and_what_is_normal_is_left_out():
    # 0x04 is the power limit, which a busy GPU runs into as it should.
    hot = replace(A10, celsius=91, slowdown_celsius=90, clock_reasons=0x04 | 0x20 | 0x40)
    state = read_nvml(RecordedNvml([hot])).gpus[0].state
    assert state.temperature == "91 °C, slows down at 90 °C"
    assert state.slowed_by == ("the driver, for heat", "the hardware, for heat")
    assert state.is_near_slowdown
    busy = replace(A10, celsius=70, slowdown_celsius=90, clock_reasons=0x01 | 0x02 | 0x04)
    state = read_nvml(RecordedNvml([busy])).gpus[0].state
    assert (state.slowed_by, state.is_near_slowdown) == ((), False)


def test_a_gpu_that_tells_nothing_of_its_state_is_still_found():
    state = read_nvml(RecordedNvml([T4])).gpus[0].state
    assert (state.temperature, state.slowed_by) == ("temperature unknown", ())
    assert not state.is_near_slowdown
    no_limit = replace(T4, celsius=70)
    assert read_nvml(RecordedNvml([no_limit])).gpus[0].state.temperature == "70 °C"


def test_pairs_of_gpus_without_a_direct_way_are_found():
    linked, apart = replace(A10, p2p_status=0), replace(A10, p2p_status=5)
    report = read_nvml(RecordedNvml([linked, linked, apart]))
    assert report.separate_pairs == ((0, 2), (1, 2))
    # 6 is unknown, and an older driver does not answer at all.
    assert read_nvml(RecordedNvml([replace(A10, p2p_status=6)] * 2)).separate_pairs == ()
    assert read_nvml(RecordedNvml([A10, A10])).separate_pairs == ()
