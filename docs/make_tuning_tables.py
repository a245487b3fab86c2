"""Write the tables of docs/TUNING.md from estimates and schedules; `--check` only compares.

python docs/make_tuning_tables.py [--check] [--only TABLE]

The table `memory` takes about a minute: each of its rows is a traced training step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from page_tables import fill, write_or_compare

from lorafit.config.batch import BatchPlan
from lorafit.config.schedule import plan_schedule
from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.estimate import estimate_memory
from lorafit.model.architectures import bundled_config
from lorafit.model.libraries import prepare_libraries

PAGE = Path(__file__).parent / "TUNING.md"
MODEL = "microsoft/phi-2"
NUM_ROWS = 2000
EFFECTIVE = 32
BASE: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "max_length": 1024,
    "torch_compile": False,
}
CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nothing", {}),
    ("`gradient_accumulation_steps` 8 to 4", {"gradient_accumulation_steps": 4}),
    ("`gradient_accumulation_steps` 8 to 32", {"gradient_accumulation_steps": 32}),
    ("`per_device_train_batch_size` 4 to 8", {"per_device_train_batch_size": 8}),
    ("`per_device_train_batch_size` 4 to 16", {"per_device_train_batch_size": 16}),
    ("`max_length` 1024 to 512", {"max_length": 512}),
    ("`max_length` 1024 to 2048", {"max_length": 2048}),
    ("`lora_r` 8 to 32", {"lora_r": 32}),
    ("`lora_r` 8 to 64", {"lora_r": 64}),
    ("`lora_dropout` 0.05 to 0", {"lora_dropout": 0.0}),
    ("`gradient_checkpointing` off", {"gradient_checkpointing": False}),
    ("`quantization` nf4", {"quantization": "nf4"}),
    ("`optim` paged_adamw_8bit", {"optim": "paged_adamw_8bit"}),
)


def memory_table() -> list[str]:
    """Return the peak of Phi-2 on an A10G, and by how much each single change moves it."""
    lines = [
        "| change | lorafit | | plain transformers + PEFT | |",
        "|---|---|---|---|---|",
    ]
    bases: dict[str, float] = {}
    for name, change in CHANGES:
        cells = []
        for kernels in ("lorafit", "stock"):
            peak = _peak_gib(kernels, change)
            base = bases.setdefault(kernels, peak)
            cells += [f"{peak:.1f} GiB", f"{peak - base:+.1f}" if change else ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _peak_gib(kernels: str, change: dict[str, Any]) -> float:
    prepare_libraries()
    config = bundled_config(MODEL)
    assert config is not None
    settings = Settings(**{"model": MODEL, "kernels": kernels, **BASE, **change})
    estimate = estimate_memory(settings, config, planned_device("a10g"))
    return estimate.peak.process_bytes / 2**30


def warmup_table() -> list[str]:
    """Return what more epochs make of a warm-up that is a ratio, and of one that is in steps."""
    lines = [
        "| epochs | steps | `warmup_ratio: 0.05` | `warmup_steps: 60` |",
        "|---|---|---|---|",
    ]
    for epochs in (1, 2, 5, 20):
        cells = []
        for warmup in ({"warmup_ratio": 0.05}, {"warmup_steps": 60}):
            settings = Settings(num_train_epochs=float(epochs), **warmup)
            found = plan_schedule(NUM_ROWS, _batch(), settings)
            cells.append(f"{found.warmup_steps} steps, {found.warmup_share:.1%}")
        lines.append(f"| {epochs} | {found.total_steps} | {' | '.join(cells)} |")
    return lines


def _batch() -> BatchPlan:
    micro = BASE["per_device_train_batch_size"]
    return BatchPlan(micro, EFFECTIVE // micro, 1, EFFECTIVE, "as in the example")


TABLES: dict[str, Callable[[], list[str]]] = {"memory": memory_table, "warmup": warmup_table}
SLOW_TABLES = ("memory",)


def render(page: str, names: tuple[str, ...] = tuple(TABLES)) -> str:
    """Return the page with these tables made anew."""
    return fill(page, PAGE, TABLES, names)


if __name__ == "__main__":
    write_or_compare(PAGE, TABLES)
