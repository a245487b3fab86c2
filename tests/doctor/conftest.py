import pytest

from lorafit.doctor.check import load_checks
from lorafit.doctor.probe import Probe
from lorafit.hardware.cpu import CpuReading
from lorafit.hardware.cuda import Gpu, GpuReport
from lorafit.hardware.detect import Sources
from lorafit.hardware.torch_build import TorchBuild
from lorafit.units import GIB, MIB

T4 = Gpu("Tesla T4", 15_360 * MIB, 448 * MIB, 14_912 * MIB, "GPU-t4", (7, 5))
A10 = Gpu("NVIDIA A10", 23_028 * MIB, 517 * MIB, 22_511 * MIB, "GPU-a10", (8, 6))


@pytest.fixture
def make_probe(tmp_path):
    """Return a factory of probes: a machine with the given GPUs, environment and CPU."""

    def make(
        *gpus,
        cuda="12.6",
        driver="535.129.03",
        environ=None,
        apple=None,
        cpu=None,
        pairs=(),
        **more,
    ):
        found = GpuReport(tuple(gpus), "NVML", driver=driver, separate_pairs=pairs)
        report = found if gpus else None
        environ = {"HF_HOME": str(tmp_path / "hf"), **(environ or {})}
        sources = Sources(
            nvml=lambda: report,
            torch_build=lambda: TorchBuild(f"2.13.0+{'cu126' if cuda else 'cpu'}", cuda),
            torch_cuda=lambda: None,
            apple=lambda: apple,
            cpu=lambda: cpu or CpuReading("AMD EPYC", 4, 32 * GIB, 30 * GIB, True),
            environ=environ,
        )
        options = {"output_dir": tmp_path / "outputs", "platform": "linux"} | more
        return Probe(environ=environ, sources=sources, **options)

    return make


@pytest.fixture
def run_check(make_probe):
    """Run one check by id on a made-up machine."""

    def run(check_id, *gpus, **machine):
        return load_checks()[check_id].run(make_probe(*gpus, **machine))

    return run
