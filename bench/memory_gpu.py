"""Hold the estimate against an NVIDIA GPU: 48 configurations, and 24 pairs at the boundary.

Not run on a GPU yet: there are no results of it. Each run is a process of its own with random
weights that are made on the device. A pair is a micro-batch n and a limit of memory
(`set_per_process_memory_fraction`) at which the estimate says that n rows fit and n + 1 do not;
both are tried. Run it with `python bench/memory_gpu.py`; `--dry-run` predicts only, anywhere.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.config.schema import Settings

if TYPE_CHECKING:
    from lorafit.hardware.info import DeviceInfo
    from lorafit.memory.events import Trace
    from lorafit.memory.trace import TraceRequest

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
PHI, MISTRAL, GEMMA = "microsoft/phi-2", "mistralai/Mistral-7B-v0.1", "google/gemma-3-1b-pt"
NUM_LAYERS = {PHI: 32, MISTRAL: 32, GEMMA: 26}

BOUNDS = {
    "allocated": {"median": 0.005, "worst": 0.02},
    "process": {"median": 0.015, "most_under": 0.03},
}
"""Largest allowed errors as shares of what is measured."""


@dataclass(frozen=True)
class Run:
    """One configuration; the settings that are not named have their defaults."""

    model: str
    rows: int
    tokens: int
    quantization: str = "none"
    attention: str = "sdpa"
    kernels: str = "lorafit"
    checkpointed: str = "none"
    """Which layers are checkpointed: none, half or all."""

    @property
    def description(self) -> str:
        """What the table says of it."""
        weights = "bf16" if self.quantization == "none" else self.quantization
        return (
            f"{self.model.rpartition('/')[2]} {weights} {self.rows} x {self.tokens} "
            f"{self.attention} {self.kernels}, checkpoints: {self.checkpointed}"
        )

    def settings(self) -> Settings:
        """Return the full settings."""
        half = NUM_LAYERS[self.model] // 2
        return Settings(
            model=self.model,
            compute_dtype="bfloat16",
            quantization=self.quantization,
            double_quant=self.quantization == "nf4",
            per_device_train_batch_size=self.rows,
            gradient_accumulation_steps=1,
            max_length=self.tokens,
            attn_implementation=self.attention,
            kernels=self.kernels,
            gradient_checkpointing=self.checkpointed != "none",
            checkpointed_layers=half if self.checkpointed == "half" else None,
            torch_compile=False,
        )


def _shapes(model: str) -> tuple[tuple[int, int, str, str, str], ...]:
    """Return rows, tokens, attention, kernels and checkpoints of a model's runs."""
    long = 2048 if model == PHI else 4096
    return (
        (1, 256, "sdpa", "lorafit", "none"),
        (4, 1024, "sdpa", "lorafit", "none"),
        (4, 1024, "sdpa", "lorafit", "half"),
        (4, 1024, "sdpa", "stock", "all"),
        (16, 512, "sdpa", "lorafit", "all"),
        (1, long, "sdpa", "lorafit", "all"),
        (2, 1024, "eager", "lorafit", "none"),
        (2, 512, "eager", "stock", "half"),
    )


RUNS = tuple(
    Run(model, rows, tokens, quantization, attention, kernels, checkpointed)
    for model in (PHI, MISTRAL, GEMMA)
    for quantization in ("none", "nf4")
    for rows, tokens, attention, kernels, checkpointed in _shapes(model)
)
PAIRS = tuple(
    Run(model, rows, tokens, quantization, "sdpa", kernels, checkpointed)
    for model in (PHI, MISTRAL, GEMMA)
    for quantization in ("none", "nf4")
    for rows, tokens, kernels, checkpointed in (
        (2, 1024, "lorafit", "none"),
        (6, 512, "lorafit", "all"),
        (3, 1024, "lorafit", "half"),
        (4, 512, "stock", "none"),
    )
)
"""The micro-batch n of each pair at the boundary; its partner has one row more."""


# -- Predicting ----------------------------------------------------------------------------


def trace_request(run: Run, device: "DeviceInfo") -> "TraceRequest":
    """Return what is traced, and built for real: stock runs are those of a plain script."""
    import torch

    from lorafit.memory.device import gpu_traits
    from lorafit.memory.estimate import parse_config
    from lorafit.memory.trace import TraceRequest
    from lorafit.model.architectures import bundled_config

    config = bundled_config(run.model)
    assert config is not None, f"{run.model} is bundled"
    return TraceRequest(
        run.settings(),
        parse_config(config, run.model),
        torch.bfloat16,
        gpu_traits(device),
        plain_script=run.kernels == "stock",
        capacity_bytes=device.usable_bytes,
    )


def predict(run: Run, device: "DeviceInfo") -> dict[str, int]:
    """Return the predicted peaks of a run, in bytes."""
    from lorafit.memory.allocator import CachingAllocator
    from lorafit.memory.gpu import context_bytes
    from lorafit.memory.replay import replay
    from lorafit.memory.trace import trace_training

    request = trace_request(run, device)
    assert request.gpu is not None, f"{device.name} is an NVIDIA GPU"
    stats = replay(trace_training(request), CachingAllocator()).stats
    context, _ = context_bytes(request.gpu, device.catalog_key)
    return {
        "allocated": stats.peak_allocated_bytes,
        "reserved": stats.peak_reserved_bytes,
        "process": stats.peak_reserved_bytes + context,
    }


def least_capacity(run: Run, device: "DeviceInfo") -> int:
    """Return the least memory in which the allocator gets a run through, to 2 MiB."""
    from lorafit.memory.trace import trace_training

    trace = trace_training(trace_request(run, device))
    low, high = 0, device.usable_bytes // (2 * MIB) + 1
    while low < high:
        middle = (low + high) // 2
        if _fits(trace, middle * 2 * MIB):
            high = middle
        else:
            low = middle + 1
    return high * 2 * MIB


def _fits(trace: "Trace", capacity: int) -> bool:
    from lorafit.memory.allocator import CachingAllocator
    from lorafit.memory.replay import replay

    return replay(trace, CachingAllocator(capacity)).out_of_memory is None


def one_more(run: Run) -> Run:
    """Return the partner of a run in its pair."""
    return Run(**{**asdict(run), "rows": run.rows + 1})


def boundary(run: Run, device: "DeviceInfo") -> int:
    """Return a limit halfway between what n and n + 1 rows need."""
    return (least_capacity(run, device) + least_capacity(one_more(run), device)) // 2


# -- Measuring, in a process of its own ----------------------------------------------------


def measure_here(run: Run, limit_bytes: int | None) -> dict[str, Any]:
    """Load and train two steps on the GPU of this process; return its counters."""
    import torch

    from lorafit.hardware.detect import detect_device
    from lorafit.memory.trace import load_adapted, train_full_rows
    from lorafit.model import build
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    device = torch.device("cuda:0")
    if limit_bytes is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(limit_bytes / total, device)
    used_before = _device_bytes_in_use()
    request = trace_request(run, detect_device("cuda:0"))
    base = build.build_on_meta(request.settings, request.config, request.dtype)
    try:
        with build.attention_context(request.settings):
            model = load_adapted(base, request, device)
            _fill(model)
            optimizer = train_full_rows(model, request.settings, device, request.plain_script)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    torch.cuda.synchronize()
    process = _device_bytes_in_use() - used_before
    reserved = torch.cuda.memory_reserved()
    result = {
        "out_of_memory": False,
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "process": process + torch.cuda.max_memory_reserved() - reserved,
        "context": process - reserved,
    }
    del optimizer
    return result


def _fill(model: Any) -> None:
    """Put small random numbers into the weights, in place; packed ones are numbers already."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point and not parameter.requires_grad:
                parameter.normal_(std=0.02)


def _device_bytes_in_use() -> int:
    """Return the bytes in use on the first GPU: in containers NVML cannot tell processes apart."""
    import pynvml

    pynvml.nvmlInit()
    used: int = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used
    return used


def measure(run: Run, limit_bytes: int | None = None) -> dict[str, Any]:
    """Measure in a new process; a failure that is no lack of memory is kept as `error`."""
    question = json.dumps([asdict(run), limit_bytes])
    command = [sys.executable, __file__, "--measure", question]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        return {"out_of_memory": False, "error": done.stderr[-500:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# -- Comparing -----------------------------------------------------------------------------


def compare_run(run: Run, device: "DeviceInfo", dry_run: bool) -> dict[str, Any]:
    """Return one row of the first table."""
    predicted = predict(run, device)
    row: dict[str, Any] = {"run": run.description, "predicted": predicted}
    if not dry_run:
        row["measured"] = measured = measure(run)
        if "allocated" in measured:
            row["error"] = {name: predicted[name] / measured[name] - 1 for name in predicted}
    return row


def compare_pair(run: Run, device: "DeviceInfo", dry_run: bool) -> dict[str, Any]:
    """Return one row of the second table."""
    limit = boundary(run, device)
    row: dict[str, Any] = {"run": run.description, "limit": limit}
    if not dry_run:
        row["first"], row["second"] = measure(run, limit), measure(one_more(run), limit)
        first_fits = "allocated" in row["first"]
        row["right"] = first_fits and bool(row["second"]["out_of_memory"])
    return row


def summarize(rows: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the errors' medians and extremes, and how many pairs were judged right."""
    errors = [row["error"] for row in rows if "error" in row]
    if not errors:
        return {"measured": 0}
    allocated = [abs(error["allocated"]) for error in errors]
    process = [error["process"] for error in errors]
    return {
        "measured": len(errors),
        "allocated": {"median": statistics.median(allocated), "worst": max(allocated)},
        "process": {
            "median": statistics.median(abs(error) for error in process),
            "most_under": max(0.0, -min(process)),
        },
        "context_bytes": statistics.median(
            row["measured"]["context"] for row in rows if "error" in row
        ),
        "pairs": len(pairs),
        "pairs_right": sum(bool(pair.get("right")) for pair in pairs),
    }


def broken_bounds(summary: dict[str, Any]) -> list[str]:
    """Return a sentence for every bound that the results break."""
    broken = [
        f"{figure}: {name} error {summary[figure][name]:.2%} is above {bound:.1%}"
        for figure, bounds in BOUNDS.items()
        for name, bound in bounds.items()
        if summary["measured"] and summary[figure][name] > bound
    ]
    if summary["measured"] and summary["pairs_right"] < summary["pairs"]:
        broken.append(f"{summary['pairs'] - summary['pairs_right']} pairs were judged wrong")
    return broken


def markdown(document: dict[str, Any]) -> str:
    """Return the results as tables to read."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        f"# Memory estimate against measured peaks ({document['device']})",
        "",
        f"{document['date']}, {versions}. Written by `python bench/memory_gpu.py`.",
        "",
        "| run | allocated MiB | error | process MiB | error |",
        "|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        measured, error = row.get("measured", {}), row.get("error", {})
        cells = [
            f"{measured[name] / MIB:,.0f} | {error[name]:+.2%}" if error else "not measured |"
            for name in ("allocated", "process")
        ]
        lines.append(f"| {row['run']} | {' | '.join(cells)} |")
    lines += ["", "| n rows fit, n + 1 do not | limit MiB | judged right |", "|---|---|---|"]
    lines += [
        f"| {pair['run']} | {pair['limit'] / MIB:,.0f} | {pair.get('right', 'not tried')} |"
        for pair in document["pairs"]
    ]
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="predict only; writes nothing")
    parser.add_argument("--hardware", default="h200", help="the GPU of a dry run")
    parser.add_argument("--runs", type=int, default=len(RUNS), help="how many configurations")
    parser.add_argument("--pairs", type=int, default=len(PAIRS), help="how many pairs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Compare every run and pair, print and write the tables; 1 when a bound is broken."""
    options = parse_arguments()
    if options.measure:
        values, limit = json.loads(options.measure)
        print(json.dumps(measure_here(Run(**values), limit)))
        return 0
    from lorafit.hardware.detect import detect_device, planned_device
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    dry_run = options.dry_run
    device = planned_device(options.hardware) if dry_run else detect_device("cuda:0")
    rows, pairs = [], []
    for run in RUNS[: options.runs]:
        start = time.monotonic()
        rows.append(compare_run(run, device, dry_run))
        print(json.dumps(rows[-1]), f"{time.monotonic() - start:.1f} s", flush=True)
    for run in PAIRS[: options.pairs]:
        pairs.append(compare_pair(run, device, dry_run))
        print(json.dumps(pairs[-1]), flush=True)
    summary = summarize(rows, pairs)
    document = {
        "schema_version": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "device": device.name,
        "driver": device.driver,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        },
        "summary": summary,
        "rows": rows,
        "pairs": pairs,
    }
    print(json.dumps(summary, indent=1))
    for sentence in broken_bounds(summary):
        print(f"above the bound: {sentence}", file=sys.stderr)
    if not dry_run:
        options.results.mkdir(parents=True, exist_ok=True)
        stem = options.results / f"memory_gpu_{device.catalog_key or 'other'}"
        stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(document))
    return 1 if broken_bounds(summary) else 0


if __name__ == "__main__":
    sys.exit(main())
