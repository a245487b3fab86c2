"""Write the tables of docs/PERFORMANCE.md; `--check` only compares.

python docs/make_performance_tables.py [--check] [--only NAME]

Measured figures are read from bench/results; what has not been measured says so. FLOPs and bytes a
token are computed here from the shape of Phi-2 and from traces of one training step.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page_tables import fill, write_or_compare

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.estimate import estimate_memory
from lorafit.model.architectures import bundled_config
from lorafit.model.libraries import prepare_libraries

PAGE = Path(__file__).parent / "PERFORMANCE.md"
RESULTS = Path(__file__).parents[1] / "bench" / "results"
MODEL = "microsoft/phi-2"
TOKENS = 1024
_ABSENT = ["Not measured yet."]
_MIB = 1 << 20


def cpu_table(size: str) -> list[str]:
    """Return speed, memory and start of every project, from a run of bench/throughput.py."""
    document = _read(f"throughput_cpu_{size}.json")
    if document is None:
        return _ABSENT
    rounds = document["rounds"]
    lines = [
        f"{document['date']}, {document['device']['name']}, one thread, {rounds} "
        f"round{'s' * (rounds != 1)}, {document['workload']['tokens']:,} tokens.",
        "",
        "| | tokens per CPU second | lorafit is | peak MiB | lorafit takes | to first step, s |",
        "|---|---|---|---|---|---|",
    ]
    for peer in document["peers"].values():
        median, against = peer["median"], peer["lorafit_against_it"]
        if median is None:
            lines.append(f"| {peer['name']} | failed | | | | |")
            continue
        cells = [
            peer["name"],
            f"{median['tokens_per_cpu_second']:,.0f}",
            f"{against['tokens_per_cpu_second']:.2f}x",
            f"{median['peak_bytes'] / _MIB:,.0f}",
            f"{against['peak_bytes']:.2f}x",
            f"{median['first_step_seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def goals_table() -> list[str]:
    """Return the goals beside what was reached, for both model sizes."""
    documents = {size: _read(f"throughput_cpu_{size}.json") for size in ("10m", "60m")}
    known = {size: document for size, document in documents.items() if document is not None}
    if not known:
        return _ABSENT
    lines = ["| goal | wanted | reached |", "|---|---|---|"]
    for size, document in known.items():
        for goal in document["goals"]:
            reached = "not measured" if goal["reached"] is None else f"{goal['reached']:.3g}"
            word = {True: "met", False: "not met", None: ""}[goal["met"]]
            lines.append(f"| {size}: {goal['name']} | {goal['wanted']:g} | {reached} {word} |")
    return lines


def gpu_table() -> list[str]:
    """Return the runs of bench/throughput_gpu.py."""
    document = _read("throughput_gpu_cuda.json")
    if document is None:
        return _ABSENT
    lines = [
        f"{document['date']}, {document['device']}.",
        "",
        "| run | tokens/s | allocated GiB |",
        "|---|---|---|",
    ]
    for name, run in document["runs"].items():
        if "error" in run:
            lines.append(f"| {name} | failed: {run['error']} | |")
        elif run["out_of_memory"]:
            lines.append(f"| {name} | out of memory | |")
        else:
            gib = run["allocated_bytes"] / 2**30
            lines.append(f"| {name} | {run['tokens_per_second']:,.0f} | {gib:.2f} |")
    return lines


def flops_table() -> list[str]:
    """Return the FLOPs of one token of Phi-2 by component, with a frozen base and LoRA r 16."""
    config = bundled_config(MODEL)
    assert config is not None
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layers, vocabulary, rank = config["num_hidden_layers"], config["vocab_size"], 16
    weights = {
        "q, k, v": layers * 3 * hidden * hidden,
        "dense": layers * hidden * hidden,
        "fc1, fc2": layers * 2 * hidden * inner,
        "output layer": hidden * vocabulary,
    }
    adapters = layers * rank * (4 * 2 * hidden + 2 * (hidden + inner))
    # Two products of 2 FLOPs with half a row's tokens at the mean; their gradients take twice that.
    attention = layers * 2 * 2 * hidden * TOKENS // 2
    # Forward, and the gradient of the input; adapters also need that of their own weights.
    rows: list[tuple[str, int, int]] = [(n, 2 * count, 2 * count) for n, count in weights.items()]
    rows += [("adapters, r 16", 2 * adapters, 4 * adapters)]
    rows += [(f"attention at {TOKENS} tokens, causal", attention, 2 * attention)]
    all_forward = sum(forward for _, forward, _ in rows)
    all_backward = sum(backward for _, _, backward in rows)
    lines = ["| component | forward, MFLOP | backward, MFLOP | share |", "|---|---|---|---|"]
    for name, forward, backward in rows:
        share = (forward + backward) / (all_forward + all_backward)
        lines.append(f"| {name} | {forward / 1e6:,.0f} | {backward / 1e6:,.0f} | {share:.1%} |")
    sums = f"{all_forward / 1e6:,.0f} | {all_backward / 1e6:,.0f}"
    return [*lines, f"| all | {sums} | 100.0% |"]


def bytes_table() -> list[str]:
    """Return where the memory of one step of Phi-2 is at its peak, stock and lean."""
    prepare_libraries()
    config = bundled_config(MODEL)
    assert config is not None
    device = planned_device("h200")
    lines = [
        "| 4 x 1024, bf16, r 16 | peak allocated GiB | activations, KiB a token and layer |",
        "|---|---|---|",
    ]
    for kernels in ("stock", "lorafit"):
        for checkpointing in (False, True):
            settings = Settings(
                model=MODEL,
                kernels=kernels,
                compute_dtype="bfloat16",
                lora_r=16,
                lora_dropout=0.05,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=1,
                max_length=TOKENS,
                gradient_checkpointing=checkpointing,
                torch_compile=False,
            )
            estimate = estimate_memory(settings, config, device)
            saved = estimate.breakdown["activation_bytes"]
            share = saved / (4 * TOKENS * config["num_hidden_layers"]) / 1024
            name = f"`kernels: {kernels}`" + (", checkpointing" if checkpointing else "")
            peak = estimate.peak.allocated_bytes / 2**30
            # Checkpointing keeps one layer whole at a time: a mean over layers says nothing there.
            kept = "" if checkpointing else f"{share:.0f}"
            lines.append(f"| {name} | {peak:.1f} | {kept} |")
    return lines


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / name
    if not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


TABLES: dict[str, Callable[[], list[str]]] = {
    "cpu-10m": lambda: cpu_table("10m"),
    "cpu-10m-alone": lambda: cpu_table("10m_alone"),
    "cpu-60m": lambda: cpu_table("60m"),
    "goals": goals_table,
    "gpu": gpu_table,
    "flops": flops_table,
    "bytes": bytes_table,
}


def render(page: str, names: tuple[str, ...]) -> str:
    """Return the page with these tables made anew."""
    return fill(page, PAGE, TABLES, names)


if __name__ == "__main__":
    write_or_compare(PAGE, TABLES)
