"""The GPU benchmark: its arithmetic, and its whole path on a CPU with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peers.full_rows import model_config
from peers.roofline import flops_per_token
from throughput_gpu import Case, markdown, roofline_share
from tiny import ROOT, child_environment

pytestmark = pytest.mark.usefixtures("quiet_libraries")


def test_flops_of_a_token_are_four_a_weight_and_those_of_attention() -> None:
    hidden, inner, layers, vocabulary = 64, 256, 2, 8192
    weights = layers * (4 * hidden * hidden + 2 * hidden * inner) + hidden * vocabulary
    tokens = 100
    # Half of a row's scores, two products of 2 FLOPs, once forward and twice backward.
    attention = layers * hidden * (tokens / 2) * 2 * 2 * 3
    assert flops_per_token(model_config("tiny"), tokens) == 4 * weights + attention


def test_flops_of_phi_2_are_those_of_its_published_size() -> None:
    # 2.78 G parameters, less the input embedding of 51200 x 2560.
    linear = flops_per_token(model_config("phi-2"), 0)
    assert linear == pytest.approx(4 * (2.7797e9 - 51200 * 2560), rel=1e-3)


def test_the_share_of_the_roofline_is_against_the_measured_matmul_rate() -> None:
    case = Case("tiny", "none", 2, 64, "lorafit")
    flops = flops_per_token(model_config("tiny"), 64)
    document = {"matmul": {"flops_per_second": 1000 * flops}}
    assert roofline_share(case, {"tokens_per_second": 600.0}, document) == pytest.approx(0.6)


def test_tables_compare_with_the_quickest_stock_run_that_got_through() -> None:
    def run(rate: float) -> dict[str, object]:
        figures = {"tokens_per_second": rate, "allocated_bytes": 2**30, "first_step_seconds": 1.0}
        return {"out_of_memory": False, **figures}

    keys = [Case("tiny", "none", 2, 64, engine).key for engine in ("stock", "lorafit")]
    checkpointed = Case("tiny", "none", 2, 64, "stock, checkpointing").key
    document = {
        "device": "A GPU",
        "date": "2026-01-01",
        "versions": {"torch": "2"},
        "matmul": {"flops_per_second": 1e12},
        "runs": {keys[0]: {"out_of_memory": True}, checkpointed: run(100.0), keys[1]: run(250.0)},
    }
    page = markdown(document)
    assert f"| {keys[0]} | out of memory |" in page
    assert f"| {keys[1]} | 250 | 2.50x |" in page


@pytest.mark.slow
def test_the_whole_path_runs_on_a_cpu_with_a_tiny_model(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "bench" / "throughput_gpu.py")]
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    asked = ["--device", "cpu", "--tiny", "--quantizations", "none"]
    subprocess.run([*script, *asked, *folders], check=True, env=child_environment())
    document = json.loads((tmp_path / "results" / "throughput_gpu_cpu.json").read_text())
    assert set(document["runs"]) == {
        f"tiny none 2x64 {engine}" for engine in ("stock", "stock, checkpointing", "lorafit")
    }
    for run in document["runs"].values():
        assert run["tokens_per_second"] > 0
        assert len(run["losses"]) == 12
        assert run["profile"]
    assert (tmp_path / "results" / "throughput_gpu_cpu.md").is_file()
