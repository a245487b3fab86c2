"""Hold the closed form against traces, and fit what it does not derive.

Run it with `python bench/fit_closed_form.py`. It draws a grid of runs (models with their real
widths and some of their layers, on several devices), asks the trace and the closed form, prints
the errors and the constants that fit best, and writes `results/closed_form.{json,md}`. Only the
memory that the allocator reserves on top of what is allocated has fitted constants.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.closed_form import (
    FITTED,
    Fragmentation,
    describe_run,
    estimate_quickly,
    fragmentation_terms,
)
from lorafit.memory.estimate import estimate_memory
from lorafit.model.architectures import bundled_config
from lorafit.model.libraries import prepare_libraries
from lorafit.units import MIB

RESULTS = Path(__file__).parent / "results"
MEDIAN_BOUND = 0.05
"""Largest allowed median error of either figure."""

# Model and layers: a few of a wide model take as long to trace as many of a narrow one.
MODELS = {
    "microsoft/phi-2": 8,
    "microsoft/phi-1_5": 24,
    "mistralai/Mistral-7B-v0.1": 6,
    "meta-llama/Llama-3.1-8B": 5,
    "meta-llama/Llama-3.2-1B": 16,
    "Qwen/Qwen2.5-1.5B": 10,
    "google/gemma-3-1b-pt": 12,
    "google/gemma-3-270m": 18,
}
DEVICES = ("t4", "a10g", "a100-80gb", "h100", "m3-18gb")


@dataclass(frozen=True)
class Case:
    """A run of the grid."""

    model: str
    num_layers: int
    hardware: str
    options: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The bundled config.json, cut to the layers."""
        config = bundled_config(self.model)
        assert config is not None, f"{self.model} comes with the package"
        return cut_layers(config, self.num_layers)

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return Settings(model=self.model, torch_compile=False, **self.options)


@dataclass(frozen=True)
class Comparison:
    """A case with both answers, in bytes."""

    case: Case
    traced_allocated: int
    quick_allocated: int
    traced_process: int
    quick_process: int
    traced_fragmentation: int
    terms: tuple[float, ...]

    @property
    def allocated_error(self) -> float:
        """Signed error of the allocated peak, as a share of the traced one."""
        return self.quick_allocated / self.traced_allocated - 1

    @property
    def process_error(self) -> float:
        """Signed error of the process's peak, as a share of the traced one."""
        return self.quick_process / self.traced_process - 1


def cut_layers(config: dict[str, Any], num_layers: int) -> dict[str, Any]:
    """Return a configuration with fewer layers of the same width."""
    cut = {**config, "num_hidden_layers": num_layers}
    if "layer_types" in cut:
        cut["layer_types"] = cut["layer_types"][:num_layers]
    return cut


def draw_cases(count: int, seed: int) -> list[Case]:
    """Return `count` runs drawn from the grid."""
    draw = random.Random(seed)
    cases = []
    for _ in range(count):
        model = draw.choice(list(MODELS))
        num_layers = MODELS[model]
        hardware = draw.choice(DEVICES)
        checkpointed = draw.choice([0, num_layers // 2, num_layers])
        options = {
            "per_device_train_batch_size": draw.choice([1, 2, 4, 8]),
            "gradient_accumulation_steps": draw.choice([1, 4]),
            "max_length": draw.choice([256, 512, 1024, 2048]),
            "lora_r": draw.choice([8, 16, 64]),
            "lora_dropout": draw.choice([0.0, 0.05]),
            "attn_implementation": draw.choice(["auto", "auto", "eager"]),
            "gradient_checkpointing": checkpointed > 0,
            "checkpointed_layers": checkpointed or None,
            "kernels": draw.choice(["stock", "lorafit"]),
            "quantization": draw.choice(["none", "none", "nf4", "int8"]),
        }
        if hardware == "m3-18gb":
            options["quantization"] = "none"
        cases.append(Case(model, num_layers, hardware, options))
    return cases


def compare(case: Case) -> Comparison:
    """Ask the trace and the closed form."""
    device = planned_device(case.hardware)
    exact = estimate_memory(case.settings, case.config, device)
    quick = estimate_quickly(case.settings, case.config, device)
    run = describe_run(case.settings, case.config, device)
    return Comparison(
        case=case,
        traced_allocated=exact.peak.allocated_bytes,
        quick_allocated=quick.peak.allocated_bytes,
        traced_process=exact.peak.process_bytes,
        quick_process=quick.peak.process_bytes,
        traced_fragmentation=exact.breakdown["fragmentation_bytes"],
        terms=fragmentation_terms(run),
    )


def fit(rows: Sequence[Comparison]) -> Fragmentation:
    """Return the constants with the least squared error, as a share of the process's memory."""
    import numpy as np

    on_gpu = [row for row in rows if planned_device(row.case.hardware).kind == "cuda"]
    weights = np.array([1 / row.traced_process for row in on_gpu])
    terms = np.array([row.terms for row in on_gpu]) * weights[:, None]
    seen = np.array([row.traced_fragmentation for row in on_gpu]) * weights
    solution = np.linalg.lstsq(terms, seen, rcond=None)[0]
    return Fragmentation(*(float(value) for value in solution))


def summarize(rows: Sequence[Comparison]) -> dict[str, dict[str, float]]:
    """Return median, mean and worst absolute error by figure."""
    figures = {
        "allocated": [abs(row.allocated_error) for row in rows],
        "process": [abs(row.process_error) for row in rows],
    }
    return {
        name: {
            "median": statistics.median(errors),
            "mean": statistics.mean(errors),
            "worst": max(errors),
        }
        for name, errors in figures.items()
    }


def markdown(rows: Sequence[Comparison], document: dict[str, Any]) -> str:
    """Return the results as a table to read."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        "# Closed form against traces",
        "",
        f"{document['date']}, {len(rows)} runs, {versions}. "
        "Written by `python bench/fit_closed_form.py`.",
        "",
        "| figure | median error | mean error | worst error |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {errors['median']:.2%} | {errors['mean']:.2%} | {errors['worst']:.2%} |"
        for name, errors in document["summary"].items()
    ]
    lines += ["", "| run | allocated MiB, traced | error | process MiB, traced | error |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {describe(row.case)} | {row.traced_allocated / MIB:,.0f} | {row.allocated_error:+.2%} "
        f"| {row.traced_process / MIB:,.0f} | {row.process_error:+.2%} |"
        for row in sorted(rows, key=lambda row: -abs(row.process_error))
    ]
    return "\n".join(lines) + "\n"


def describe(case: Case) -> str:
    """Return a case as a phrase."""
    o = case.options
    size = f"{o['per_device_train_batch_size']} x {o['max_length']}"
    parts = [
        f"{case.model} ({case.num_layers} layers)",
        case.hardware,
        size,
        f"{o['checkpointed_layers'] or 0} checkpointed",
        f"{o['attn_implementation']} attention",
        f"{o['kernels']} kernels",
        f"{o['quantization']} base",
        f"r {o['lora_r']}, dropout {o['lora_dropout']}, accumulation "
        f"{o['gradient_accumulation_steps']}",
    ]
    return ", ".join(parts)


def main() -> int:
    """Compare, print, write; 1 when a median error is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=160, help="runs to draw; each takes a second")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    prepare_libraries()
    rows = [compare(case) for case in draw_cases(options.runs, options.seed)]
    document = {
        "schema_version": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "summary": summarize(rows),
        "fitted_now": fit(rows)._asdict(),
        "fitted_in_use": FITTED._asdict(),
        "rows": [asdict(row) for row in rows],
    }
    for name, errors in summarize(rows).items():
        print(f"{name:9} " + "  ".join(f"{key} {value:.2%}" for key, value in errors.items()))
    print(f"in use: {FITTED}\nfits best: {fit(rows)}")
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "closed_form.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.results / "closed_form.md").write_text(markdown(rows, document))
    medians = [errors["median"] for errors in summarize(rows).values()]
    return 1 if max(medians) > MEDIAN_BOUND else 0


if __name__ == "__main__":
    sys.exit(main())
