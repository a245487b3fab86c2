"""Run one training under the probe and read what it measured."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers.catalog import Peer
from peers.commands import Losses, Start

PROBE = Path(__file__).absolute().parent / "probe"
ROOT = PROBE.parents[2]
PROBED = "probe"
"""The folder, inside that of a run, where the probe writes."""
PAD_ID = 0
# Two threads on a shared machine wait for each other, which CPU seconds would count.
ON_ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
_LONGEST_SECONDS = 3600


class RunError(Exception):
    """A training failed; the text is the project's own last words."""


@dataclass(frozen=True)
class Measurement:
    """One training, measured from inside its process."""

    cpu_seconds: float
    """Of all threads, from the first forward pass to the end of the last optimizer step."""
    wall_seconds: float
    """Of the same span."""
    start_seconds: float
    """From the start of the command to the first forward pass of training."""
    start_cpu_seconds: float
    """CPU seconds of that process up to there."""
    first_step_seconds: float
    """From the start of the command to the end of the first optimizer step."""
    peak_bytes: int
    """Largest resident memory of the process up to the last step."""
    tokens: int
    """Tokens of prompts and completions in the span, without padding."""
    positions: int
    """The same with padding."""
    steps: int
    threads: int
    losses: Losses

    @property
    def tokens_per_cpu_second(self) -> float:
        """The main figure: independent of what else the machine does."""
        return self.tokens / self.cpu_seconds

    @property
    def tokens_per_wall_second(self) -> float:
        """The same by the clock on the wall."""
        return self.tokens / self.wall_seconds

    def figure(self, name: str) -> float:
        """Return a figure by its name."""
        value: float = getattr(self, name)
        return value

    def record(self) -> dict[str, Any]:
        """Return everything for the results."""
        rates = {
            "tokens_per_cpu_second": self.tokens_per_cpu_second,
            "tokens_per_wall_second": self.tokens_per_wall_second,
        }
        losses = {str(step): loss for step, loss in self.losses.items()}
        return {**asdict(self), **rates, "losses": losses}


def measure(peer: Peer, start: Start) -> Measurement:
    """Train once in a process of its own, in the folder `start.folder`, which is emptied.

    Raises:
        RunError: the training failed, or took no optimizer step that the probe saw.
    """
    empty(start.folder)
    ours = here() if peer.environment is None else {}
    run_probed(peer.command(start), start.folder, start.caches, {**ON_ONE_CORE, **ours})
    return _read(probe_record(start.folder), peer.losses(start.folder))


def prepare(peer: Peer, start: Start) -> None:
    """Run what the peer needs before its first training.

    Raises:
        RunError: it failed.
    """
    command = peer.prepare(start)
    if command is not None:
        empty(start.folder)
        run_probed(command, start.folder, start.caches, ON_ONE_CORE)


def here() -> dict[str, str]:
    """Return the variables with which a process finds this source tree, installed or not."""
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(PROBE), str(ROOT), *([inherited] if inherited else [])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def empty(folder: Path) -> None:
    """Make a folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def run_probed(
    command: list[str], folder: Path, caches: Path, variables: Mapping[str, str]
) -> None:
    """Run a command in `folder` with the probe in all its processes.

    Raises:
        RunError: it failed; the text is its last words.
    """
    (folder / PROBED).mkdir(parents=True)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith("LORAFIT_")
    }
    fixed = {
        "PYTHONPATH": str(PROBE),
        "PROBE_FOLDER": str(folder / PROBED),
        "PROBE_PAD": str(PAD_ID),
        "PROBE_STARTED": repr(time.time()),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(caches / "hugging-face"),
        "MODELSCOPE_CACHE": str(caches / "modelscope"),
        "LORAFIT_CACHE_DIR": str(caches / "lorafit"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DO_NOT_TRACK": "1",
        "WANDB_MODE": "disabled",
    }
    with (
        (folder / "stdout.txt").open("w") as out,
        (folder / "stderr.txt").open("w") as err,
    ):
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env={**inherited, **fixed, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=_LONGEST_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as late:
            raise RunError(f"not done after {_LONGEST_SECONDS} s") from late
        except OSError as problem:
            raise RunError(f"{command[0]} cannot be started: {problem.strerror}") from problem
    if code != 0:
        raise RunError(f"exit status {code}: {_last_words(folder)}")


def _last_words(folder: Path) -> str:
    """Return the last line that speaks of an error, or else the last line of all."""
    texts = [(folder / name).read_text() for name in ("stdout.txt", "stderr.txt")]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:300]


def probe_record(folder: Path) -> dict[str, Any]:
    """Return what the probe wrote about the one process that trained.

    Raises:
        RunError: there were none, or more.
    """
    records = [json.loads(path.read_text()) for path in (folder / PROBED).glob("*.json")]
    if len(records) != 1:
        raise RunError(f"{len(records)} processes took optimizer steps, where one was expected")
    record: dict[str, Any] = records[0]
    return record


def _read(record: dict[str, Any], losses: Losses) -> Measurement:
    first, last = record["first_forward"], record["steps"][-1]
    return Measurement(
        cpu_seconds=last["cpu_seconds"] - first["cpu_seconds"],
        wall_seconds=last["wall_seconds"] - first["wall_seconds"],
        start_seconds=first["wall_seconds"],
        start_cpu_seconds=first["cpu_seconds"],
        first_step_seconds=record["steps"][0]["wall_seconds"],
        peak_bytes=last["peak_bytes"],
        tokens=last["tokens"],
        positions=last["positions"],
        steps=len(record["steps"]),
        threads=record["threads"],
        losses=losses,
    )
