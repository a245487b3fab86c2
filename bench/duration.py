"""Hold the predicted duration of training runs against the clock.

    python bench/duration.py [--rows 240] [--work FOLDER] [--results FOLDER]

trains the small Phi models of bench/peers/workload.py one run after another, as `lorafit train`
does, each a process of its own. They begin with an empty cache, so that the first run of a model is
predicted by arithmetic and the later ones from those before. Run it on a machine that does nothing
else; what else ran is no part of any prediction. It writes duration_<device>.json and .md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from peers.workload import write_workload

RESULTS = Path(__file__).parent / "results"
_COMMON = ("--lora-r", "8", "--num-train-epochs", "1", "--validation-split", "0.1")


@dataclass(frozen=True)
class Run:
    """One run: what of the rows it takes, and what it sets."""

    name: str
    size: str = "10m"
    share: float = 1.0
    """Of the rows."""
    flags: dict[str, str] = field(default_factory=dict)

    def settings(self) -> list[str]:
        """Return the flags of `lorafit train`."""
        given = {
            "max-length": "512",
            "per-device-train-batch-size": "4",
            "gradient-accumulation-steps": "4",
            "gradient-checkpointing": "false",
            "eval-steps": "6",
            **self.flags,
        }
        overrides = [f"{name.replace('-', '_')}={value}" for name, value in given.items()]
        return [*_COMMON, *overrides]


_SHORT = {"max-length": "64", "per-device-train-batch-size": "8"}
_CHECKPOINTED = {"gradient-checkpointing": "true"}
_STOCK = {"kernels": "stock"}
RUNS = (
    Run("10 M, the first run"),
    Run("10 M, again"),
    Run("10 M, a third time"),
    Run("10 M, twice the rows", share=2.0),
    Run("10 M, rows cut to 64 tokens, 8 a micro-batch", flags=_SHORT),
    Run("10 M, that again", flags=_SHORT),
    Run("10 M, checkpointing, the first run", flags=_CHECKPOINTED),
    Run("10 M, checkpointing, again", flags=_CHECKPOINTED),
    Run("10 M, stock kernels, the first run", share=0.5, flags=_STOCK),
    Run("10 M, stock kernels, again", share=0.5, flags=_STOCK),
    Run("60 M, the first run", size="60m", share=0.5),
    Run("60 M, again", size="60m", share=0.5),
)


def main() -> int:
    """Measure all runs and write the results."""
    options = _parse_arguments()
    shutil.rmtree(options.work, ignore_errors=True)
    measured: list[dict[str, Any]] = []
    for run in RUNS:
        measured.append(measure(run, options))
        print(progress(measured[-1]), file=sys.stderr, flush=True)
        # After each run: what was measured is kept, whatever happens to the next.
        write_results(measured, options)
    return 0


def write_results(measured: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the tables of the runs so far."""
    document = {
        "schema_version": 1,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": measured[0]["device"],
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "rows": options.rows,
        "versions": {name: version(name) for name in ("lorafit", "torch", "transformers")},
        "load": os.getloadavg()[2],
        "cores": os.cpu_count(),
        "runs": measured,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.results / f"duration_{document['device']['kind']}"
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(document))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=240, help="rows of most runs (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("duration-work"), help="scratch folder")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables go")
    return parser.parse_args()


def measure(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Train one run in a process of its own; return what was predicted and what it took."""
    num_rows = round(options.rows * run.share)
    folder = options.work / f"{run.size}-{num_rows}"
    if not (folder / "facts.json").is_file():
        write_workload(folder, run.size, num_rows)
    output = options.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "lorafit", "train", "--log-level", "warning"),
        *("--model", str(folder / "model"), "--data", str(folder / "prompts.jsonl")),
        *("--output-dir", str(output), "--json", *run.settings()),
    ]
    environment = os.environ | {"LORAFIT_CACHE_DIR": str((options.work / "cache").absolute())}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if process.returncode:
        raise SystemExit(f"{run.name} failed:\n{process.stderr}")
    record = json.loads((output / "run.json").read_text())
    plan = record["plan"]["duration"]
    results = record["results"]
    return {
        **asdict(run),
        "rows": num_rows,
        "basis": plan["basis"],
        "reason": plan["reason"],
        "predicted_seconds": results["predicted_duration_seconds"],
        "low_seconds": results["predicted_low_duration_seconds"],
        "high_seconds": results["predicted_high_duration_seconds"],
        "seconds": results["duration_seconds"],
        "predicted_tokens_per_second": plan["tokens_per_second"],
        "tokens_per_second": results["tokens_per_second"],
        "tokens": results["tokens"],
        "flops_per_second": plan["flops"] / plan["tokens"] * results["tokens_per_second"],
        "device": {name: record["plan"]["device"][name] for name in ("kind", "name")},
    }


def is_within(run: dict[str, Any]) -> bool:
    """Return whether a run took as long as its range says."""
    return bool(run["low_seconds"] <= run["seconds"] <= run["high_seconds"])


def progress(run: dict[str, Any]) -> str:
    """Return a run as a line."""
    low, high = run["low_seconds"], run["high_seconds"]
    return (
        f"{run['name']}: took {run['seconds']:.1f} s, predicted {run['predicted_seconds']:.1f} "
        f"({low:.1f} to {high:.1f}, {run['basis']})"
    )


def markdown(document: dict[str, Any]) -> str:
    """Return the results as a page."""
    threads = document["threads"]
    lines = [
        "# Predicted and measured duration of training",
        "",
        f"Written by `bench/duration.py` on {document['measured_at'][:10]}: "
        f"{document['device']['name']}, {threads} thread{'s' * (threads != 1)}, "
        f"{document['rows']} rows, torch {document['versions']['torch']}. Over the last quarter of "
        f"an hour, {document['load']:.1f} processes wanted the machine's {document['cores']} cores "
        "at once, this run's own one of them.",
        "",
        "From the plan to the verified adapter, in seconds. The first run of each model, and of "
        "each setting that changes its speed, is predicted by arithmetic, later ones from those "
        "before.",
        "",
        "| run | basis | predicted, s | range, s | took, s | took / predicted | in the range |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for run in document["runs"]:
        ratio = run["seconds"] / run["predicted_seconds"]
        lines.append(
            f"| {run['name']} | {run['basis']} | {run['predicted_seconds']:.1f} | "
            f"{run['low_seconds']:.1f} to {run['high_seconds']:.1f} | {run['seconds']:.1f} | "
            f"{ratio:.2f} | {'yes' if is_within(run) else 'no'} |"
        )
    missing = len(RUNS) - len(document["runs"])
    lines += ["", *_summary(document["runs"])]
    if missing:
        lines.append(f"- {missing} of the {len(RUNS)} runs of the script were not made")
    return "\n".join([*lines, ""])


def _summary(runs: list[dict[str, Any]]) -> list[str]:
    lines = []
    for basis in ("measured", "arithmetic"):
        chosen = [run for run in runs if run["basis"] == basis]
        if not chosen:
            continue
        ratios = sorted(run["seconds"] / run["predicted_seconds"] for run in chosen)
        within = sum(map(is_within, chosen))
        lines.append(
            f"- {basis}: {within} of {len(chosen)} runs within their range; took between "
            f"{ratios[0]:.2f} and {ratios[-1]:.2f} of the prediction, {median(ratios):.2f} at the "
            "median"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
