"""The measured runs, and how a module that asks an estimator hands back its answers."""

import argparse
import contextlib
import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024**2
GIB = 1024**3

# Name of a figure to its bytes; None where the estimator has no such figure for the run.
Figures = dict[str, int | None]


@dataclass(frozen=True)
class Run:
    """One measured fine-tuning run: what was trained, and the peaks that were seen."""

    id: str
    model: str
    gpu_capacity_bytes: int
    quantization: str  # "none" or "nf4"
    double_quant: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    target_modules: tuple[str, ...]
    batch_size: int
    seq_len: int
    attention: str  # "eager" or "sdpa-efficient"
    gradient_checkpointing: bool
    allocated_bytes: int
    process_bytes: int
    model_folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration, as its `config.json` holds it."""
        document: dict[str, Any] = json.loads((self.model_folder / "config.json").read_text())
        return document

    @property
    def hub_id(self) -> str:
        """The model's name on the Hugging Face hub."""
        owner = "TinyLlama" if self.model.startswith("TinyLlama") else "HuggingFaceTB"
        return f"{owner}/{self.model}"


def read_runs(data: Path) -> list[Run]:
    """Return the runs of `data/measured_peaks.csv`; `data/configs` holds the models' folders.

    Raises:
        ValueError: a run was trained with an optimizer or a compute dtype that the modules which
            ask the estimators do not pass on.
    """
    with (data / "measured_peaks.csv").open(newline="", encoding="utf-8") as stream:
        return [_run(row, data) for row in csv.DictReader(stream)]


def _run(row: dict[str, str], data: Path) -> Run:
    if (row["optimizer"], row["compute_dtype"]) != ("adamw_torch", "float16"):
        raise ValueError(f"{row['id']}: only adamw_torch with float16 is passed on to estimators")
    return Run(
        id=row["id"],
        model=row["model"],
        gpu_capacity_bytes=int(row["gpu_capacity_mib"]) * MIB,
        quantization=row["quantization"],
        double_quant=row["double_quant"] == "True",
        lora_r=int(row["lora_r"]),
        lora_alpha=int(row["lora_alpha"]),
        lora_dropout=float(row["lora_dropout"]),
        target_modules=tuple(row["target_modules"].split("|")),
        batch_size=int(row["batch_size"]),
        seq_len=int(row["seq_len"]),
        attention=row["attention"],
        gradient_checkpointing=row["gradient_checkpointing"] == "True",
        allocated_bytes=int(row["peak_allocated_bytes"]),
        process_bytes=int(row["process_bytes"]),
        model_folder=(data / "configs" / row["model"]).absolute(),
    )


def answer(estimate: Callable[[Run], Figures]) -> None:
    """Print, as one JSON document, what `estimate` says of every run in the folder given.

    An estimator's own words go to stderr, so that stdout holds the document alone.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    runs = read_runs(parser.parse_args().data)
    with contextlib.redirect_stdout(sys.stderr):
        figures = {run.id: estimate(run) for run in runs}
    print(json.dumps(figures))
