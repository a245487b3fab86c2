"""What is known of GPUs, and the bench that holds it against one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lorafit.memory.gpu import GpuTraits, context_bytes
from lorafit.units import MIB

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_gpu_bench", BENCH / "memory_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_context_says_whether_it_was_measured_posted_or_fitted() -> None:
    assert "measured" in context_bytes(GpuTraits((7, 5), 40), "t4")[1]
    size, reason = context_bytes(GpuTraits((8, 9), 128), "rtx-4090")
    assert size == 510 * MIB
    assert "posted" in reason
    size, reason = context_bytes(GpuTraits((9, 0), 132), "h100")
    assert reason.startswith("fitted")
    assert 400 * MIB < size < 700 * MIB


def test_bench_has_the_configurations_and_pairs_it_promises(bench: ModuleType) -> None:
    assert len({run.description for run in bench.RUNS}) == len(bench.RUNS) >= 40
    assert len({run.description for run in bench.PAIRS}) == len(bench.PAIRS) == 24
    for run in (*bench.RUNS, *bench.PAIRS):
        settings = run.settings()
        assert 1 <= settings.per_device_train_batch_size <= 16
        assert 256 <= settings.max_length <= 4096
        assert settings.gradient_checkpointing == (run.checkpointed != "none")
    assert {run.kernels for run in bench.RUNS} == {"lorafit", "stock"}
    assert {run.attention for run in bench.RUNS} == {"sdpa", "eager"}


def test_bench_judges_by_its_bounds(bench: ModuleType) -> None:
    def row(error: float) -> dict[str, object]:
        errors = {"allocated": error, "process": error}
        return {"error": errors, "measured": {"context": 500}}

    good = bench.summarize([row(0.001), row(-0.002)], [{"right": True}])
    assert bench.broken_bounds(good) == []
    bad = bench.summarize([row(0.001), row(-0.05)], [{"right": False}])
    broken = " ".join(bench.broken_bounds(bad))
    assert "allocated: worst" in broken
    assert "process: most_under" in broken
    assert "1 pairs were judged wrong" in broken
    assert bench.broken_bounds(bench.summarize([], [])) == []
