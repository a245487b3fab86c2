"""Train full-size models on an NVIDIA GPU: tokens a second, share of the roofline, memory.

    python bench/throughput_gpu.py [--models phi-2,mistral-7b] [--seconds 540]
    python bench/throughput_gpu.py --device cpu --tiny

Random weights, rows that fill `max_length`, LoRA r 16 with dropout 0.05 on all Linear modules of
the blocks. Every run is `lorafit train` in a process of its own: unmodified transformers + PEFT
(`kernels: stock`) with and without gradient checkpointing, and lorafit with and without
torch.compile. Results are written after each run; runs that they hold already are not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memory_estimators.comparison import table
from peers.full_rows import model_config, write_rows
from peers.measure import ON_ONE_CORE, RunError, empty, here, probe_record, run_probed
from peers.roofline import flops_per_token
from platformdirs import user_cache_path

from lorafit.files import write_json
from lorafit.units import GIB

BENCH = Path(__file__).absolute().parent
WARM_UP_STEPS = 4
MEASURED_STEPS = 6
# The step that is profiled, and one before it in which the profiler starts, are not measured.
PROFILED_STEPS = 2

ENGINES: dict[str, dict[str, str]] = {
    "stock": {"kernels": "stock"},
    "stock, checkpointing": {"kernels": "stock", "gradient_checkpointing": "true"},
    "lorafit": {"kernels": "lorafit"},
    "lorafit, compiled": {"kernels": "lorafit", "torch_compile": "true"},
}
SHAPES = {
    "phi-2": ((4, 1024), (8, 1024), (4, 2048)),
    "mistral-7b": ((4, 1024), (2, 2048)),
    "tiny": ((2, 64),),
}


@dataclass(frozen=True)
class Case:
    """One run."""

    model: str
    quantization: str
    rows: int
    tokens: int
    engine: str

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.model} {self.quantization} {self.rows}x{self.tokens} {self.engine}"


def main() -> int:
    """Run what is missing in the results, and write the tables."""
    options = _parse_arguments()
    stem: Path = options.results / f"throughput_gpu_{options.device.partition(':')[0]}"
    document = _read_document(stem, options)
    started = time.monotonic()
    for case in _cases(options):
        if "error" not in document["runs"].get(case.key, {"error": "missing"}):
            continue
        if time.monotonic() - started > options.seconds:
            say(f"left for another call: {case.key}")
            continue
        document["runs"][case.key] = result = run_case(case, options)
        say(f"{case.key}: {result.get('error') or describe(case, result, document)}")
        _write(stem, document)
    say(f"the tables are in {stem}.md")
    return 1 if any("error" in run for run in document["runs"].values()) else 0


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    lists = {
        "--models": "phi-2,mistral-7b",
        "--quantizations": "none,nf4",
        "--engines": ";".join(ENGINES),
    }
    for flag, default in lists.items():
        parser.add_argument(flag, default=default, help="default: %(default)s")
    parser.add_argument("--device", default="cuda:0", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="one tiny model, float32: tries it")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="start no further run after so many seconds"
    )
    parser.add_argument(
        "--work", type=_absolute, default=user_cache_path("lorafit") / "bench-throughput-gpu"
    )
    parser.add_argument("--results", type=_absolute, default=BENCH / "results")
    return parser.parse_args()


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _cases(options: argparse.Namespace) -> list[Case]:
    models = ("tiny",) if options.tiny else tuple(options.models.split(","))
    engines = [engine for engine in options.engines.split(";") if engine in ENGINES]
    if options.device == "cpu":
        # lorafit compiles on GPUs only.
        engines = [engine for engine in engines if "torch_compile" not in ENGINES[engine]]
    return [
        Case(model, quantization, rows, tokens, engine)
        for model in models
        for quantization in options.quantizations.split(",")
        for rows, tokens in SHAPES[model]
        for engine in engines
    ]


# -- Running ---------------------------------------------------------------------------------


def run_case(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Train some steps; return what was measured, `out_of_memory`, or `error`."""
    model = options.work / case.model
    _python("peers.full_rows", str(model), case.model, options.device)
    folder = options.work / "run"
    rows = options.work / f"{case.rows}x{case.tokens}.jsonl"
    num_steps = WARM_UP_STEPS + MEASURED_STEPS + PROFILED_STEPS
    write_rows(rows, case.rows * num_steps, case.tokens)
    settings = {
        "model": model,
        "data": rows,
        "output_dir": folder / "output",
        "device": options.device,
        "compute_dtype": "float32" if options.tiny else "bfloat16",
        "quantization": case.quantization,
        "max_length": case.tokens,
        "per_device_train_batch_size": case.rows,
        "gradient_accumulation_steps": 1,
        "max_steps": num_steps,
        "validation_split": 0,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "on_oom": "fail",
        "gradient_checkpointing": "false",
        "torch_compile": "false",
        **ENGINES[case.engine],
    }
    arguments = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "lorafit", "train", "--allow-oom-attempt", *arguments]
    # The profiled step begins where the last but one ends.
    on_cpu = ON_ONE_CORE if options.device == "cpu" else {}
    variables = {"PROBE_PROFILE_AFTER": str(num_steps - 1), **on_cpu, **here()}
    empty(folder)
    try:
        run_probed(command, folder, folder / "caches", variables)
    except RunError as error:
        words = (folder / "stderr.txt").read_text().lower()
        if "ran out of" in words or "out of memory" in words:
            return {"out_of_memory": True}
        return {"out_of_memory": False, "error": str(error)}
    return _read_run(folder)


def _read_run(folder: Path) -> dict[str, Any]:
    record = probe_record(folder)
    lines = (folder / "output" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    measured = events[WARM_UP_STEPS : WARM_UP_STEPS + MEASURED_STEPS]
    seconds = statistics.median(event["seconds"] for event in measured)
    return {
        "out_of_memory": False,
        "step_seconds": seconds,
        "tokens_per_second": statistics.median(
            event["tokens"] / event["seconds"] for event in measured
        ),
        "first_step_seconds": events[0]["seconds"],
        "start_seconds": record["first_forward"]["wall_seconds"],
        "allocated_bytes": max(event["memory_allocated_bytes"] for event in events),
        "reserved_bytes": max(event["memory_reserved_bytes"] for event in events),
        "losses": [event["loss"] for event in events],
        "profile": record["profile"],
    }


def _python(module: str, *arguments: str) -> str:
    """Run a module of this folder in a process of its own, which gives its memory back."""
    command = [sys.executable, "-m", module, *arguments]
    variables = {**os.environ, **here()}
    done = subprocess.run(
        command, cwd=BENCH, env=variables, check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{module} failed:\n{done.stderr[-2000:]}")
    return done.stdout


# -- Results ---------------------------------------------------------------------------------


def _read_document(stem: Path, options: argparse.Namespace) -> dict[str, Any]:
    path = stem.with_suffix(".json")
    if path.is_file():
        stored: dict[str, Any] = json.loads(path.read_text())
        return stored
    from lorafit.hardware.detect import detect_device

    names = ("lorafit", "torch", "transformers", "peft", "bitsandbytes")
    return {
        "schema_version": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "device": detect_device(options.device).name,
        "versions": {name: version(name) for name in names},
        "matmul": json.loads(_python("peers.roofline", options.device)),
        "runs": {},
    }


def describe(case: Case, result: dict[str, Any], document: dict[str, Any]) -> str:
    """Return a run in words."""
    if result["out_of_memory"]:
        return "out of memory"
    return (
        f"{result['tokens_per_second']:,.0f} tokens/s, "
        f"{roofline_share(case, result, document):.1%} of the roofline, "
        f"{result['allocated_bytes'] / GIB:.2f} GiB"
    )


def roofline_share(case: Case, result: dict[str, Any], document: dict[str, Any]) -> float:
    """Return the measured rate as a share of what the device's matmul rate would allow."""
    flops = flops_per_token(model_config(case.model), case.tokens)
    limit: float = document["matmul"]["flops_per_second"] / flops
    return float(result["tokens_per_second"]) / limit


def _write(stem: Path, document: dict[str, Any]) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(stem.with_suffix(".json"), document)
    stem.with_suffix(".md").write_text(markdown(document), encoding="utf-8")


def markdown(document: dict[str, Any]) -> str:
    """Return the results as tables to read."""
    cases = {key: _case_of(key) for key in document["runs"]}
    rate = document["matmul"]["flops_per_second"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        f"# LoRA training on {document['device']}",
        f"Written by `bench/throughput_gpu.py` on {document['date']}; {versions}. Random weights, "
        "full rows, LoRA r 16 with dropout 0.05 on all Linear modules of the blocks. A large "
        f"matmul reaches {rate / 1e12:,.3g} TFLOP/s here; the roofline is 4 FLOPs a parameter and "
        "token, and those of attention, at that rate. Medians of "
        f"{MEASURED_STEPS} steps after {WARM_UP_STEPS}.",
        table(
            ["run", "tokens/s", "against stock", "of the roofline", "peak GiB", "first step, s"],
            [_row(cases[key], run, document) for key, run in document["runs"].items()],
        ),
    ]
    for key, run in document["runs"].items():
        if run.get("profile"):
            lines += [f"## Where a step goes: {key}", _profile_table(run["profile"])]
    return "\n\n".join(lines) + "\n"


def _case_of(key: str) -> Case:
    model, quantization, shape, engine = key.split(" ", 3)
    rows, tokens = shape.split("x")
    return Case(model, quantization, int(rows), int(tokens), engine)


def _row(case: Case, run: dict[str, Any], document: dict[str, Any]) -> list[str]:
    if "error" in run or run["out_of_memory"]:
        return [case.key, run.get("error", "out of memory"), "", "", "", ""]
    # The quickest stock run that got through: checkpointing only where it was needed.
    stock = [
        document["runs"].get(Case(**{**asdict(case), "engine": engine}).key, {})
        for engine in ENGINES
        if engine.startswith("stock")
    ]
    best = max((each.get("tokens_per_second", 0.0) for each in stock), default=0.0)
    return [
        case.key,
        f"{run['tokens_per_second']:,.0f}",
        f"{run['tokens_per_second'] / best:.2f}x" if best else "",
        f"{roofline_share(case, run, document):.1%}",
        f"{run['allocated_bytes'] / GIB:.2f}",
        f"{run['first_step_seconds']:.2f}",
    ]


def _profile_table(profile: list[dict[str, Any]], num_rows: int = 15) -> str:
    total = sum(kernel["seconds"] for kernel in profile)
    rows = [
        [
            kernel["name"][:90],
            str(kernel["calls"]),
            f"{kernel['seconds'] * 1e3:.2f}",
            f"{kernel['seconds'] / total:.1%}",
        ]
        for kernel in profile[:num_rows]
    ]
    return table(["kernel", "calls", "ms", "share"], rows)


if __name__ == "__main__":
    sys.exit(main())
