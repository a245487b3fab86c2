"""What the examples share: their options, the tiny model, rows, and running a command."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lorafit.cli.main import main as lorafit_main
from lorafit.demo.nli import DATA_FOLDER
from lorafit.demo.pretrain import ensure_demo_model
from lorafit.model.libraries import prepare_libraries


@dataclass(frozen=True)
class Choices:
    """What an example was asked for on its command line."""

    folder: Path
    model: Path
    steps: int

    def at_most(self, count: int) -> int:
        """Return `count`, or fewer rows where so few steps would not get to see them."""
        return min(count, 20 * self.steps)

    @property
    def short_run(self) -> list[str]:
        """Flags that suit a tiny model on a CPU; with a real model, take a preset instead."""
        values = {
            "model": self.model,
            "device": "cpu",
            "max-length": 160,
            "max-steps": self.steps,
            "warmup-steps": 1,
            "per-device-train-batch-size": 16,
            "effective-batch-size": 16,
            "learning-rate": 3e-3,
            "lora-r": 16,
            "lora-dropout": 0.0,
            "eval-steps": max(2, self.steps // 2),
            "save-steps": max(2, self.steps // 2),
        }
        flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
        return [*flags, "--no-gradient-checkpointing"]


def read_choices(description: str | None, steps: int = 150) -> Choices:
    """Return the choices of the command line; the model is the demo's, made if need be."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path("outputs/example"), help="for results")
    parser.add_argument("--model", type=Path, help="model folder; default: the demo's tiny Phi")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps")
    given = parser.parse_args()
    prepare_libraries()
    given.folder.mkdir(parents=True, exist_ok=True)
    return Choices(given.folder, given.model or ensure_demo_model(), given.steps)


def nli_rows(name: str, count: int) -> Iterator[dict[str, str]]:
    """Yield rows of the bundled data set: premise, hypothesis, reasoning and label."""
    with (DATA_FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            yield json.loads(line)


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lorafit(*arguments: object) -> None:
    """Run a command as a shell would, after showing it; any exit code but 0 ends the example."""
    words = [str(argument) for argument in arguments]
    sys.stderr.write(f"\n$ {shlex.join(['lorafit', *words])}\n")
    try:
        lorafit_main(words)
    except SystemExit as ended:
        if ended.code:
            raise
