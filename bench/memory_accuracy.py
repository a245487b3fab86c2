"""Hold the memory estimate against measured peaks: 39 runs on a T4 (bench/data).

The runs are plain loops around stock transformers + PEFT. The estimate gets the settings of a
run and the model's config.json, nothing else. Run it with `python bench/memory_accuracy.py`.
"""

import argparse
import csv
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.estimate import estimate_memory
from lorafit.model.libraries import prepare_libraries

HERE = Path(__file__).parent
ROWS = HERE / "data" / "measured_peaks.csv"
CONFIGS = HERE / "data" / "configs"
RESULTS = HERE / "results"
PEERS = RESULTS / "memory_peers_t4.json"

BOUNDS = {
    "none": {
        "allocated": {"mean": 0.001, "worst": 0.005},
        "process": {"mean": 0.003, "worst": 0.01},
    },
    "nf4": {"allocated": {"mean": 0.002, "worst": 0.006}, "process": {"mean": 0.03}},
}
"""Largest allowed error as a share of the measured figure."""


@dataclass(frozen=True)
class Comparison:
    """One run: what was measured and what the estimate says, in bytes."""

    run: str
    quantization: str
    description: str
    measured_allocated: int
    predicted_allocated: int
    measured_process: int
    predicted_process: int
    elapsed_seconds: float

    @property
    def allocated_error(self) -> float:
        """Signed error of the allocated peak, as a share of the measured one."""
        return self.predicted_allocated / self.measured_allocated - 1

    @property
    def process_error(self) -> float:
        """Signed error of the process's peak, as a share of the measured one."""
        return self.predicted_process / self.measured_process - 1


def row_settings(row: dict[str, str]) -> Settings:
    """Return the settings of a measured run."""
    return Settings(
        model=row["model"],
        compute_dtype=row["compute_dtype"],
        quantization=row["quantization"],
        double_quant=row["double_quant"] == "True",
        lora_r=int(row["lora_r"]),
        lora_alpha=float(row["lora_alpha"]),
        lora_dropout=float(row["lora_dropout"]),
        target_modules=tuple(row["target_modules"].split("|")),
        per_device_train_batch_size=int(row["batch_size"]),
        gradient_accumulation_steps=1,
        max_length=int(row["seq_len"]),
        attn_implementation=row["attention"],
        gradient_checkpointing=row["gradient_checkpointing"] == "True",
        torch_compile=False,
        optim=row["optimizer"],
        max_grad_norm=float(row["max_grad_norm"] or 0),
        kernels="stock",
    )


def compare(row: dict[str, str]) -> Comparison:
    """Estimate one measured run."""
    config = json.loads((CONFIGS / row["model"] / "config.json").read_text())
    start = time.monotonic()
    estimate = estimate_memory(row_settings(row), config, planned_device("t4"), plain_script=True)
    return Comparison(
        run=row["id"],
        quantization=row["quantization"],
        description=f"{row['model']} {row['attention']} {row['batch_size']} x {row['seq_len']}",
        measured_allocated=int(row["peak_allocated_bytes"]),
        predicted_allocated=estimate.peak.allocated_bytes,
        measured_process=int(row["process_bytes"]),
        predicted_process=estimate.peak.process_bytes,
        elapsed_seconds=time.monotonic() - start,
    )


def summarize(rows: list[Comparison]) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean and worst absolute error by quantization and figure."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for kind in BOUNDS:
        chosen = [row for row in rows if row.quantization == kind]
        if chosen:
            summary[kind] = {
                "allocated": _spread(row.allocated_error for row in chosen),
                "process": _spread(row.process_error for row in chosen),
            }
    return summary


def _spread(errors: Iterable[float]) -> dict[str, float]:
    sizes = [abs(error) for error in errors]
    return {"mean": statistics.mean(sizes), "worst": max(sizes)}


def broken_bounds(summary: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return a sentence for every bound that the summary breaks."""
    return [
        f"{kind} {figure}: {name} error {summary[kind][figure][name]:.3%} is above {bound:.1%}"
        for kind, figures in BOUNDS.items()
        if kind in summary
        for figure, bounds in figures.items()
        for name, bound in bounds.items()
        if summary[kind][figure][name] > bound
    ]


def markdown(rows: list[Comparison], document: dict[str, Any]) -> str:
    """Return the results as a table to read."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        "# Memory estimate against measured peaks (T4)",
        "",
        f"{document['date']}, {versions}. Written by `python bench/memory_accuracy.py`.",
        "",
        "| base weights | figure | mean error | worst error |",
        "|---|---|---|---|",
    ]
    for kind, figures in document["summary"].items():
        for figure, errors in figures.items():
            lines.append(f"| {kind} | {figure} | {errors['mean']:.3%} | {errors['worst']:.3%} |")
    lines += peer_lines(document["summary"])
    lines += ["", "| run | | base | allocated MiB | error | process MiB | error |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row.run} | {row.description} | {row.quantization} "
        f"| {row.measured_allocated / 2**20:,.1f} | {row.allocated_error:+.3%} "
        f"| {row.measured_process / 2**20:,.1f} | {row.process_error:+.2%} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def peer_lines(summary: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return a table of other estimators' mean errors on the same runs beside these.

    It is read from the results of bench/memory_peers.py; without those there is no table.
    """
    if not PEERS.is_file():
        return []
    lines = [
        "",
        "Other estimators on the same runs (mean and worst absolute error), from "
        f"[{PEERS.with_suffix('.md').name}]({PEERS.with_suffix('.md').name}):",
        "",
        "| estimator | against | unquantized | worst | NF4 | worst |",
        "|---|---|---|---|---|---|",
    ]
    for figure in ("allocated", "process"):
        cells = [summary[kind][figure] if kind in summary else None for kind in BOUNDS]
        lines.append(f"| **lorafit** | {figure} | {' | '.join(map(_errors, cells))} |")
    for peer in json.loads(PEERS.read_text())["estimators"]:
        for figure in peer["figures"]:
            against = figure["against"].removesuffix("_bytes")
            cells = [figure["unquantized"], figure["nf4"]]
            name = f"{peer['name']}: {figure['name']}"
            lines.append(f"| {name} | {against} | {' | '.join(map(_errors, cells))} |")
    return lines


def _errors(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "none | none"
    return f"{spread['mean']:.2%} | {abs(spread['worst']):.2%}"


def main() -> int:
    """Estimate every run, print and write the table; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="ids of runs; default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    prepare_libraries()
    with ROWS.open(newline="") as file:
        measured = [row for row in csv.DictReader(file) if row["id"] in (options.only or row["id"])]
    rows = []
    for row in measured:
        rows.append(compare(row))
        last = rows[-1]
        print(
            f"{last.run}  {last.description:52} {last.quantization:5}"
            f" allocated {last.allocated_error:+.3%}  process {last.process_error:+.2%}"
            f"  {last.elapsed_seconds:.1f} s",
            flush=True,
        )
    summary = summarize(rows)
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    document = {
        "schema_version": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "summary": summary,
        "rows": [asdict(row) for row in rows],
    }
    broken = [] if options.only else broken_bounds(summary)  # means need every run
    for kind, figures in summary.items():
        for figure, errors in figures.items():
            print(f"{kind:5} {figure:9} mean {errors['mean']:.3%}  worst {errors['worst']:.3%}")
    for sentence in broken:
        print(f"above the bound: {sentence}", file=sys.stderr)
    if not options.only:
        options.results.mkdir(parents=True, exist_ok=True)
        stem = options.results / "memory_accuracy_t4"
        stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(rows, document))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
