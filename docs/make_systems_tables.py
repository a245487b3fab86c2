"""Write the parameter tables of docs/SYSTEMS.md from what lorafit resolves; `--check` compares.

python docs/make_systems_tables.py
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from lorafit.config.batch import BatchPlan, resolve_batch
from lorafit.config.fields import show_value
from lorafit.config.presets import load_preset
from lorafit.config.resolve import Resolved, resolve_run
from lorafit.hardware.detect import planned_device

PAGE = Path(__file__).parent / "SYSTEMS.md"
MICRO, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
EFFECTIVE = "effective_batch_size"
PRESETS = "test_presets.py::test_a_preset_has_every_value_that_its_system_gives"
TYPED = "test_reference.py::test_what_the_reference_types_means_what_it_says"


class Row(NamedTuple):
    """A parameter of a system: what its description gives, and where lorafit has it."""

    name: str
    """What is tried: a preset, or what is typed."""
    parameter: str
    expected: object
    setting: str
    test: str
    num_devices: int = 1


def nli_rows() -> list[Row]:
    """Return what the description of the NLI system gives, by preset."""
    given: dict[str, dict[str, object]] = {
        "ablation0": {EFFECTIVE: 16, "num_train_epochs": 1.0},
        "ablation0-best": {EFFECTIVE: 16, "num_train_epochs": 2.0},
        "ablation1": {EFFECTIVE: 32, "warmup_ratio": 0.05, "gradient_checkpointing": False},
        "ablation1-best": {EFFECTIVE: 32, "warmup_ratio": 0.03, "gradient_checkpointing": True},
        "ablation2": {EFFECTIVE: 64, "lora_r": 32, "lora_alpha": 64.0},
        "ablation2-best": {
            EFFECTIVE: 64, "lora_r": 32, "lora_alpha": 64.0, "learning_rate": 5e-5,
            "num_train_epochs": 5.0,
        },
        "distributed": {EFFECTIVE: 32, "warmup_ratio": 0.03, "gradient_checkpointing": True},
    }  # fmt: skip
    return [
        Row(f"mistral-nli/{name}", setting.replace("_", " "), value, setting, PRESETS)
        for name, values in given.items()
        for setting, value in values.items()
    ]


def qlora_rows() -> list[Row]:
    """Return the quick reference of QLoRA's presets, and what all of them share."""
    table: dict[str, tuple[object, ...]] = {
        "lora_r": (32, 64, 32, 16),
        "num_train_epochs": (3.0, 3.0, 3.0, 1.0),
        MICRO: (4, 4, 2, 4),
        ACCUMULATION: (4, 4, 8, 4),
        "max_length": (512, 512, 256, 512),
        "learning_rate": (2e-4,) * 4,
        "warmup_steps": (100, 100, 100, 50),
        "lora_alpha": (32.0, 64.0, 32.0, 32.0),
        EFFECTIVE: (64,) * 4,
        "quantization": ("nf4",) * 4,
        "double_quant": (True,) * 4,
        "optim": ("adamw_torch",) * 4,
        "lr_scheduler_type": ("cosine",) * 4,
        "compute_dtype": ("bfloat16",) * 4,
        "gradient_checkpointing": (True,) * 4,
    }
    names = ("default", "high-capacity", "memory-efficient", "quick-test")
    shared = (
        "test_qlora.py::test_64_rows_a_step_are_kept_on_any_number_of_devices_that_divides_them"
    )
    on_four = "test_qlora.py::test_on_four_devices_accumulation_is_that_of_the_description"
    tests = {EFFECTIVE: shared, ACCUMULATION: on_four}
    return [
        Row(f"qlora/{name}", parameter, values[i], parameter, tests.get(parameter, PRESETS), 4)
        for i, name in enumerate(names)
        for parameter, values in table.items()
    ]


def reference_rows() -> list[Row]:
    """Return the parameters and patterns of the training reference."""
    rows = [
        Row("training=default", "micro_batch_size", 4, MICRO, TYPED),
        Row("training=default", "num_batches", 3738, "max_steps", TYPED),
        Row("training=default", "save_interval_steps", 100, "save_steps", TYPED),
        Row("training=default", "eval_interval_steps", 500, "eval_steps", TYPED),
        Row("training=default", "log_interval_steps", 10, "logging_steps", TYPED),
        Row("training=default", "seed", 42, "seed", TYPED),
        Row("training=default", "gradient_accumulation_steps", 1, ACCUMULATION, TYPED),
        Row("optimizer=default", "max_grad_norm", 0.1, "max_grad_norm", TYPED),
        Row("training.num_epochs=2", "num_epochs", 2.0, "num_train_epochs", TYPED),
        Row("checkpoint_dir=./checkpoints/ckpts/", "checkpoint_dir", "./checkpoints/ckpts/",
            "output_dir", TYPED),
        Row("device=cpu", "device", "cpu", "device", TYPED),
        Row("training=aggressive", "micro_batch_size", 8, MICRO, TYPED),
        Row("training=aggressive", "num_batches", 1000, "max_steps", TYPED),
        Row("training=aggressive", "save_interval_steps", 50, "save_steps", TYPED),
        Row("training=aggressive", "eval_interval_steps", 100, "eval_steps", TYPED),
        Row("training=aggressive", "log_interval_steps", 5, "logging_steps", TYPED),
        Row("model=gemma3_270m", "Gemma 3 270M", "google/gemma-3-270m", "model", TYPED),
        Row("model=gemma3_1b", "Gemma 3 1B", "google/gemma-3-1b-pt", "model", TYPED),
        Row("model=gemma3_4b", "Gemma 3 4B", "google/gemma-3-4b-pt", "model", TYPED),
        Row("model.lora_rank=8", "lora_rank", 8, "lora_r", TYPED),
        Row("optimizer.learning_rate=3e-6", "learning_rate", 3e-6, "learning_rate", TYPED),
        Row("+experiment=quick_test", "micro_batch_size", 2, MICRO, TYPED),
        Row("+experiment=quick_test", "num_batches", 10, "max_steps", TYPED),
    ]  # fmt: skip
    patterns: dict[str, dict[str, object]] = {
        "quick-test": {MICRO: 2, "max_steps": 10, "save_steps": 10, "eval_steps": 10},
        "memory-constrained": {"model": "google/gemma-3-270m", MICRO: 1, "max_steps": 3738},
        "high-performance": {
            "model": "google/gemma-3-4b-pt", MICRO: 8, "max_steps": 10_000, "eval_steps": 1000,
        },
        "production": {
            "model": "google/gemma-3-1b-pt", MICRO: 4, "max_steps": 10_000, "save_steps": 100,
        },
        "aggressive": {
            MICRO: 8, "max_steps": 1000, "save_steps": 50, "eval_steps": 100, "logging_steps": 5,
        },
    }  # fmt: skip
    for name, values in patterns.items():
        rows += [Row(f"gemma3/{name}", key, v, key, PRESETS) for key, v in values.items()]
        rows.append(Row(f"gemma3/{name}", "max_grad_norm", 0.1, "max_grad_norm", PRESETS))
    return rows


def is_preset(row: Row) -> bool:
    """Return whether a row is about a preset rather than about what is typed."""
    return "=" not in row.name


def resolve(row: Row) -> tuple[Resolved, BatchPlan]:
    """Return the settings that a row is about, and their batch on its devices."""
    resolved = resolve_run(
        preset=row.name if is_preset(row) else None,
        config_file=None,
        overrides=() if is_preset(row) else (row.name,),
        flags={},
        environ={},
        device=planned_device("a100-80gb"),
    )
    return resolved, resolve_batch(resolved, row.num_devices)


def found_value(row: Row) -> object:
    """Return what lorafit makes of a row: the batch as it is split, any other setting as it is."""
    resolved, batch = resolve(row)
    if row.setting in (MICRO, ACCUMULATION, EFFECTIVE):
        return getattr(batch, row.setting)
    return getattr(resolved.settings, row.setting)


def command_of(row: Row) -> str:
    """Return the command that shows the value."""
    if is_preset(row):
        return f"lorafit presets show {row.name}"
    return f"lorafit config show {shlex.quote(row.name)}"


def table(rows: list[Row]) -> list[str]:
    """Return a table with one row a parameter."""
    lines = ["| parameter | given | command | result | test |", "|---|---|---|---|---|"]
    for row in rows:
        value = found_value(row)
        result = "as given" if value == row.expected else "differs"
        is_split = row.num_devices > 1 and row.setting in (EFFECTIVE, ACCUMULATION)
        devices = f" on {row.num_devices} devices" if is_split else ""
        lines.append(
            f"| {row.parameter} | {show_value(row.expected)} | `{command_of(row)}` "
            f"| `{row.setting}: {show_value(value)}`{devices}, {result} | `{row.test}` |"
        )
    return lines


def chosen_table() -> list[str]:
    """Return the values that the NLI description leaves open, and what was chosen."""
    names = [f"mistral-nli/{n}" for n in (
        "ablation0", "ablation0-best", "ablation1", "ablation1-best", "ablation2",
        "ablation2-best", "distributed", "quick-test")]  # fmt: skip
    settings = ("learning_rate", "warmup_ratio", "num_train_epochs", "lora_r", "max_grad_norm",
                MICRO, "gradient_checkpointing")  # fmt: skip
    lines = [
        "| preset | " + " | ".join(f"`{name}`" for name in settings) + " | `max_length` |",
        "|---|" + "---|" * (len(settings) + 1),
    ]
    for name in names:
        preset = load_preset(name)
        values = {"max_grad_norm": 1.0, **preset.settings}
        length = preset.hardware["default"]["max_length"]
        cells = [_cell(preset.path, setting, values[setting]) for setting in settings]
        lines.append(
            f"| `{name}` | {' | '.join(cells)} | {_cell(preset.path, 'max_length', length)} |"
        )
    return lines


def _cell(path: Path, setting: str, value: object) -> str:
    """Return a value, in italics where the comment above it says that all of it was chosen."""
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith(f"{setting}:"):
            break
        comment = [*comment, text] if text.startswith("#") else []
    is_given = "Given: " in " ".join(comment) and "Chosen: " not in " ".join(comment)
    return show_value(value) if is_given else f"*{show_value(value)}*"


def render(page: str) -> str:
    """Return the page with its tables made anew."""
    tables = {
        "nli": table(nli_rows()),
        "nli-chosen": chosen_table(),
        "qlora": table(qlora_rows()),
        "reference": table(reference_rows()),
    }
    for name, rows in tables.items():
        start, end = f"<!-- {name}: generated -->\n", f"<!-- end {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = before + start + "\n".join(rows) + "\n" + end + after
    return page


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/SYSTEMS.md.")
    parser.add_argument("--check", action="store_true", help="compare only; 1 when stale")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = render(page)
    if arguments.check:
        sys.exit(0 if page == made else f"{PAGE} is stale: run {Path(__file__).name}")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
