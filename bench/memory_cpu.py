"""Hold the estimate for CPUs against real runs: peak resident memory of some training steps.

Each run is a process of its own that builds a model with random weights, adds the adapter and
trains it with lorafit's step: two steps on full rows, and then, where rows go end to end, some on
rows of many lengths. Run it with `python bench/memory_cpu.py`; with `--model NAME --max-length N …`
it measures one run of your own, such as Phi-2, on full rows.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorafit.config.schema import Settings

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20

_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
_MIDDLE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny-phi": {"model_type": "phi", **_TINY},
    "middle-phi": {"model_type": "phi", **_MIDDLE},
    "middle-llama": {"model_type": "llama", **_MIDDLE, "num_key_value_heads": 4},
    "middle-gemma3": {
        "model_type": "gemma3_text",
        **_MIDDLE,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "sliding_window": 256,
    },
}


@dataclass(frozen=True)
class Run:
    """One configuration: a shape above or a bundled model, and the settings that differ."""

    model: str
    settings: dict[str, Any]
    varied_steps: int = 0
    """Steps on rows of many lengths, after those on full rows."""

    @property
    def description(self) -> str:
        """What the table says of it."""
        options = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        varied = f", {self.varied_steps} steps on rows of many lengths"
        return f"{self.model}: {options}{varied if self.varied_steps else ''}"


def _run(
    model: str, rows: int, tokens: int, dtype: str, *, varied_steps: int = 0, **options: Any
) -> Run:
    settings = {
        "per_device_train_batch_size": rows,
        "max_length": tokens,
        "compute_dtype": dtype,
        **options,
    }
    return Run(model, settings, varied_steps)


RUNS = (
    _run("tiny-phi", 1, 64, "float32"),
    _run("tiny-phi", 4, 256, "bfloat16", varied_steps=8),
    _run("middle-phi", 2, 256, "float32", varied_steps=8),
    _run("middle-phi", 2, 256, "bfloat16", varied_steps=8),
    _run("middle-phi", 2, 256, "float32", kernels="stock"),
    _run("middle-phi", 2, 256, "float32", varied_steps=8, gradient_checkpointing=True),
    _run("middle-phi", 2, 256, "float32", attn_implementation="eager"),
    _run("middle-llama", 2, 256, "float32", varied_steps=8),
    _run("middle-llama", 2, 256, "bfloat16", varied_steps=8),
    _run("middle-gemma3", 2, 256, "float32", varied_steps=8),
    _run("middle-phi", 4, 512, "float32", varied_steps=12),
    _run("middle-llama", 4, 512, "float32", varied_steps=12),
    _run("middle-phi", 4, 512, "bfloat16", varied_steps=12),
)


def run_settings(run: Run) -> Settings:
    """Return the full settings of a run."""
    values = {"gradient_accumulation_steps": 1, "torch_compile": False, **run.settings}
    return Settings(model=run.model, **values)


def model_config(name: str) -> dict[str, Any]:
    """Return config.json of a shape of this file or of a bundled model."""
    from lorafit.model.architectures import bundled_config

    if name in SHAPES:
        return SHAPES[name]
    config = bundled_config(name)
    if config is None:
        raise SystemExit(f"{name} is neither bundled nor one of {', '.join(SHAPES)}")
    return config


def predict(run: Run) -> dict[str, Any]:
    """Return the estimate of a run on this machine's CPU."""
    from lorafit.hardware.detect import detect_device
    from lorafit.memory.estimate import estimate_memory

    return estimate_memory(
        run_settings(run), model_config(run.model), detect_device("cpu")
    ).document()


def train(run: Run) -> dict[str, int]:
    """Train two steps in this process and return its peak resident memory, in bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    from lorafit.hardware.detect import detect_device
    from lorafit.memory.estimate import parse_config
    from lorafit.memory.malloc import return_freed_blocks, reuse_small_blocks
    from lorafit.memory.trace import train_full_rows
    from lorafit.model.build import add_adapter, attention_name
    from lorafit.model.lean.cpu_products import choose_cpu_products
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    # What `lorafit train` loads besides: the Trainer, and TensorBoard's writer.
    import_module("lorafit.training.trainer")
    import_module("torch.utils.tensorboard")
    settings = run_settings(run)
    choose_cpu_products(detect_device("cpu").name)
    config = parse_config(model_config(run.model), run.model)
    return_freed_blocks()
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            config,
            dtype=getattr(torch, settings.compute_dtype),
            attn_implementation=attention_name(settings),
        )
    base.to_empty(device="cpu")
    base.init_weights()
    base.tie_weights()
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model, _ = add_adapter(base, settings)
    if settings.kernels == "lorafit":
        reuse_small_blocks()
    loaded = _resident_bytes()
    train_full_rows(model, settings, torch.device("cpu"))
    _train_varied_rows(model, settings, run.varied_steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"loaded_bytes": loaded, "peak_bytes": peak * (1 if sys.platform == "darwin" else 1024)}


def _train_varied_rows(model: Any, settings: Settings, num_steps: int) -> None:
    """Train steps of 16 rows whose lengths are spread as those of texts, as training does it."""
    from lorafit.data.collate import EndToEndCollator
    from lorafit.data.micro_batches import (
        MicroBatchLimits,
        gather_step,
        plan_micro_batches,
        token_budget,
        token_multiple,
    )
    from lorafit.model.step import make_optimizer, training_step

    draw = random.Random(0)
    optimizer = make_optimizer(model, settings)
    multiple = token_multiple("cpu")
    units, longest = settings.per_device_train_batch_size, settings.max_length
    limits = MicroBatchLimits(units, token_budget(units, longest, "cpu").value, multiple)
    collate = EndToEndCollator(0, longest, multiple, by_document=True)
    for _ in range(num_steps):
        lengths = [min(longest, max(8, int(draw.lognormvariate(4.3, 0.8)))) for _ in range(16)]
        rows = gather_step([{"input_ids": [1] * n, "labels": [1] * n} for n in lengths])
        parts = plan_micro_batches(rows.lengths, limits)
        batches = [collate(rows.rows_of(part)) for part in parts]
        training_step(model, optimizer, batches, rows.num_targets, settings)


def _resident_bytes() -> int:
    import psutil

    resident: int = psutil.Process().memory_info().rss
    return resident


def measure(run: Run) -> dict[str, int]:
    """Run `train` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--measure",
        json.dumps([run.model, run.settings, run.varied_steps]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(f"{run.description} failed:\n{done.stderr[-2000:]}")
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def markdown(document: dict[str, Any]) -> str:
    """Return the results as a table to read."""
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        "# Memory estimate against measured peaks (CPU)",
        "",
        f"{document['date']}, {document['machine']}, {versions}. "
        "Written by `python bench/memory_cpu.py`.",
        "",
        f"Error of the process's peak: mean {document['mean_error']:.2%}, "
        f"worst {document['worst_error']:.2%}.",
        "",
        "| run | measured MiB | predicted MiB | error |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['run']} | {row['measured_bytes'] / MIB:,.0f} "
        f"| {row['predicted_bytes'] / MIB:,.0f} | {row['error']:+.2%} |"
        for row in document["rows"]
    ]
    return "\n".join(lines) + "\n"


def compare(run: Run) -> dict[str, Any]:
    """Measure and predict one run."""
    measured, predicted = measure(run), predict(run)
    process = predicted["peak"]["process_bytes"]
    return {
        "run": run.description,
        **asdict(run),
        "measured_bytes": measured["peak_bytes"],
        "loaded_bytes": measured["loaded_bytes"],
        "predicted_bytes": process,
        "predicted_allocated_bytes": predicted["peak"]["allocated_bytes"],
        "error": process / measured["peak_bytes"] - 1,
    }


def own_run(options: argparse.Namespace) -> Run:
    """Return the run that the command line describes."""
    return _run(
        options.model,
        options.rows,
        options.max_length,
        options.compute_dtype,
        attn_implementation=options.attn_implementation,
        gradient_checkpointing=options.gradient_checkpointing,
        kernels=options.kernels,
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write to")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="measure this model alone, and write no table")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--compute-dtype", default="bfloat16")
    parser.add_argument("--attn-implementation", default="auto")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--kernels", default="lorafit")
    return parser.parse_args()


def main() -> int:
    """Compare every run, print and write the table."""
    options = parse_arguments()
    if options.measure:
        print(json.dumps(train(Run(*json.loads(options.measure)))))
        return 0
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()
    rows = []
    for run in [own_run(options)] if options.model else RUNS:
        rows.append(compare(run))
        last = rows[-1]
        print(
            f"{last['run']:100} measured {last['measured_bytes'] / MIB:9,.0f} MiB"
            f"  predicted {last['predicted_bytes'] / MIB:9,.0f} MiB  {last['error']:+.2%}",
            flush=True,
        )
    errors = [abs(row["error"]) for row in rows]
    packages = ("torch", "transformers", "peft")
    document = {
        "schema_version": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "mean_error": statistics.mean(errors),
        "worst_error": max(errors),
        "rows": rows,
    }
    if not options.model:
        options.results.mkdir(parents=True, exist_ok=True)
        stem = options.results / "memory_cpu"
        stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
