"""Write the tables of docs/MEMORY.md from real estimates; `--check` only compares.

python docs/make_memory_tables.py [--check] [--only presets|guide|accuracy|peers]

The tables of presets and of the guide take minutes, a trace an estimate. The others are read from
bench/results.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from page_tables import fill, write_or_compare

from lorafit.config.batch import resolve_batch
from lorafit.config.presets import DEFAULT_ROW, list_presets
from lorafit.config.resolve import resolve_run
from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.hardware.info import DeviceInfo
from lorafit.memory.estimate import Estimate, estimate_memory
from lorafit.model.architectures import bundled_config
from lorafit.model.libraries import prepare_libraries
from lorafit.units import format_bytes

PAGE = Path(__file__).parent / "MEMORY.md"
RESULTS = Path(__file__).parents[1] / "bench" / "results"
MODEL = "microsoft/phi-2"

# What the training guide promises for its flags, which the rows of the presets hold.
GUIDE_GIGABYTES = {
    ("high", "a10g"): 20,
    ("balanced", "a10g"): 16,
    ("low", "a10g"): 12,
    ("high", "m3-18gb"): 16,
    ("balanced", "m3-18gb"): 14,
    ("low", "m3-18gb"): 12,
    ("safe", "m3-18gb"): 10,
}
# Where a preset has no rows of its own: the two devices that the guide is about.
DEFAULT_DEVICES = ("a10g", "m3-18gb")


class Row(NamedTuple):
    """One preset on one device."""

    preset: str
    hardware: str
    settings: Settings
    device: DeviceInfo

    @property
    def facts(self) -> list[str]:
        """The columns that need no estimate."""
        settings = self.settings
        shape = (
            f"{settings.per_device_train_batch_size} x {settings.gradient_accumulation_steps} "
            f"x {settings.max_length}"
        )
        promised = GUIDE_GIGABYTES.get((self.preset, self.hardware))
        said = f"about {promised} GB" if promised else ""
        return [f"`{self.preset}`", f"`{self.hardware}`", shape, said]


def shipped_rows() -> list[Row]:
    """Return every row of every shipped preset; a preset without rows on the guide's devices."""
    return [
        _row(preset.name, hardware)
        for preset in list_presets()
        if "/" not in preset.name  # the families are for other models: docs/SYSTEMS.md
        for hardware in (tuple(k for k in preset.rows if k != DEFAULT_ROW) or DEFAULT_DEVICES)
    ]


def _row(preset: str, hardware: str) -> Row:
    device = planned_device(hardware)
    resolved = resolve_run(
        preset=preset, config_file=None, overrides=(), flags={}, environ={}, device=device
    )
    batch = resolve_batch(resolved, num_devices=1)
    settings = resolved.settings.model_copy(
        update={
            "per_device_train_batch_size": batch.per_device_train_batch_size,
            "gradient_accumulation_steps": batch.gradient_accumulation_steps,
            "effective_batch_size": None,
        }
    )
    return Row(preset, hardware, settings, device)


@functools.cache
def _estimate(settings: Settings, device: DeviceInfo, plain_script: bool) -> Estimate:
    prepare_libraries()
    config = bundled_config(MODEL)
    assert config is not None
    if plain_script:
        settings = settings.model_copy(update={"kernels": "stock"})
    return estimate_memory(settings, config, device, plain_script=plain_script)


def presets_table() -> list[str]:
    """Return the estimate of every row on its device, beside what the guide promises."""
    lines = [
        "| preset | device | micro-batch x accumulation x tokens | the guide says | lorafit | |"
        " plain transformers + PEFT | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in shipped_rows():
        both = [_estimate(row.settings, row.device, plain) for plain in (False, True)]
        cells = [*row.facts, *_cells(both[0]), *_cells(both[1])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def guide_table() -> list[str]:
    """Return what is true of each figure of the guide, with and without checkpointing."""
    lines = [
        "| flags of | the guide says | lorafit | plain script | plain, no checkpointing "
        "| what is true |",
        "|---|---|---|---|---|---|",
    ]
    for preset, hardware in GUIDE_GIGABYTES:
        row = _row(preset, hardware)
        without = row.settings.model_copy(update={"gradient_checkpointing": False})
        plain = _estimate(row.settings, row.device, True)
        estimates = (
            _estimate(row.settings, row.device, False),
            plain,
            _estimate(without, row.device, True),
        )
        said = GUIDE_GIGABYTES[preset, hardware]
        cells = [f"`{preset}` on `{hardware}`", f"{said} GB = {format_bytes(said * 10**9)}"]
        cells += [format_bytes(estimate.peak.process_bytes) for estimate in estimates]
        lines.append(f"| {' | '.join(cells)} | {_judge(said * 10**9, plain)} |")
    return lines


def _judge(said_bytes: int, plain: Estimate) -> str:
    """Return whether the guide's figure is right for a plain script, as a phrase."""
    peak = plain.peak.process_bytes
    parts = []
    if abs(peak / said_bytes - 1) <= 0.1:
        parts.append("about right for a plain script")
    else:
        way = "low" if peak > said_bytes else "high"
        parts.append(f"{format_bytes(abs(peak - said_bytes))} too {way} for a plain script")
    if said_bytes > plain.capacity_bytes:
        limit = format_bytes(plain.capacity_bytes)
        parts.append(f"and more than the {limit} that the device can give at all")
    return ", ".join(parts)


def _cells(estimate: Estimate) -> tuple[str, str]:
    share = estimate.peak.process_bytes / estimate.capacity_bytes
    return format_bytes(estimate.peak.process_bytes), f"{estimate.verdict} ({share:.0%})"


def accuracy_table() -> list[str]:
    """Return the errors against measured runs, from bench/results."""
    document = _read("memory_accuracy_t4.json")
    lines = [
        "| base weights | runs | figure | mean error | worst error |",
        "|---|---|---|---|---|",
    ]
    for kind, figures in document["summary"].items():
        runs = sum(row["quantization"] == kind for row in document["rows"])
        for figure, errors in figures.items():
            lines.append(
                f"| {kind} | {runs} | {figure} | {errors['mean']:.2%} | {errors['worst']:.2%} |"
            )
    return lines


def peers_table() -> list[str]:
    """Return the mean errors of all estimators on the same runs, from bench/results."""
    ours = _read("memory_accuracy_t4.json")["summary"]
    lines = [
        "| estimator | figure | 16 unquantized runs | 23 NF4 runs |",
        "|---|---|---|---|",
    ]
    for figure in ("allocated", "process"):
        errors = " | ".join(f"{ours[kind][figure]['mean']:.2%}" for kind in ("none", "nf4"))
        lines.append(f"| **lorafit** | {figure} | {errors} |")
    for estimator in _read("memory_peers_t4.json")["estimators"]:
        for figure in estimator["figures"]:
            name = figure["against"].removesuffix("_bytes")
            errors = " | ".join(_mean(figure[kind]) for kind in ("unquantized", "nf4"))
            lines.append(f"| {estimator['name']}: {figure['name']} | {name} | {errors} |")
    return lines


def _mean(summary: dict[str, Any] | None) -> str:
    if not summary or summary.get("mean") is None:
        return "none"
    return f"{summary['mean']:.1%}"


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return document


TABLES: dict[str, Callable[[], list[str]]] = {
    "presets": presets_table,
    "guide": guide_table,
    "accuracy": accuracy_table,
    "peers": peers_table,
}


def render(page: str, names: tuple[str, ...]) -> str:
    """Return the page with these tables made anew."""
    return fill(page, PAGE, TABLES, names)


if __name__ == "__main__":
    write_or_compare(PAGE, TABLES)
