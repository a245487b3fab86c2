"""A short run, followed by a tracker in a process of its own: `python followed.py NAME FOLDER ...`.

The libraries start threads and processes, keep what they read of the environment, and write the
rest at the end of the process. After its end, everything that a person has is there.
"""

import importlib.machinery
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from tiny import ROOT, child_environment

from lorafit.config.schema import Settings
from lorafit.report.records import StepRecord
from lorafit.report.tracker import tracked_config
from lorafit.report.trackers import TRACKERS

RUN_ID = "0123456789abcdef0123456789abcdef"
# `make setup` gives the trackers an environment of their own, over that of the tests.
_OWN = Path(sys.prefix) / "trackers"
PYTHON = str(_OWN / "bin" / "python") if _OWN.exists() else sys.executable
# A library that finds itself in a test says less of itself.
_LEFT_OUT = ("WANDB_", "MLFLOW_", "TRACKIO_", "PYTEST_", "CI")
_ASKED = "asked-for"


def record(step, **changes):
    values = {
        "step": step, "loss": 3.0 - step, "learning_rate": 1e-4, "grad_norm": 1.0, "epoch": 0.5,
        "tokens": 100, "supervised_tokens": 40, "tokens_per_second": 50.0, "seconds": 2.0,
        "memory_allocated_bytes": 10, "memory_reserved_bytes": 20 + step,
    }  # fmt: skip
    return StepRecord(**{**values, **changes})


def follow(tracker, steps=(1, 2, 3), first_step=0):
    """Let a tracker follow a short run; the last step is validated."""
    tracker.on_start(3, first_step)
    for step in steps:
        tracker.on_step(record(step, **({"validation_loss": 1.5} if step == 3 else {})))
    tracker.on_end()
    return tracker


def is_installed(name: str) -> bool:
    """Return whether a tracker's library can be imported by PYTHON."""
    own = [str(path) for path in _OWN.glob("lib/python*/site-packages")]
    return importlib.machinery.PathFinder.find_spec(name, [*own, *sys.path]) is not None


def environment_of(run_dir: Path, **changes: str) -> dict[str, str]:
    """Return the environment of a person who has set nothing up for any tracker."""
    known = child_environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", PYTHONWARNINGS="ignore")
    mine = {k: v for k, v in known.items() if not k.startswith(_LEFT_OUT)}
    return {**mine, "HOME": str(run_dir.parent), "TEST_MARK": str(run_dir), **changes}


def follow_alone(name: str, run_dir: Path, *steps: int, first_step: int = 0) -> None:
    """Follow steps with a tracker in a process of its own; nothing of it may stay behind."""
    run_dir.mkdir(exist_ok=True)
    arguments = [name, run_dir, first_step, *steps]
    done = subprocess.run(
        [PYTHON, __file__, *map(str, arguments)],
        env=environment_of(run_dir),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    asked = run_dir / _ASKED
    assert not asked.exists(), f"{name} looked for {asked.read_text()}"
    wait_until_gone(run_dir)


def read_alone(name: str, path: Path) -> Any:
    """Return what a file of a tracker holds, by the library's own definitions."""
    done = subprocess.run(
        [PYTHON, __file__, f"read-{name}", str(path)],
        env=environment_of(path.parent),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wait_until_gone(run_dir: Path) -> None:
    """Wait until no process with the run's environment is left."""
    deadline = time.monotonic() + 300
    while left := [process for process in psutil.process_iter() if _is_of(process, run_dir)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def _is_of(process: psutil.Process, run_dir: Path) -> bool:
    try:
        return process.environ().get("TEST_MARK") == str(run_dir)
    except (psutil.Error, OSError):
        return False


def _refuse_network(run_dir: Path) -> None:
    """Write down the hosts that are looked for, and find none of them."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1"):
            with (run_dir / _ASKED).open("a") as file:
                file.write(f"{arguments[0]}\n")
            raise OSError("this process has no network")

    sys.addaudithook(audit)


def read_wandb(log):
    """Return history rows, configuration and the other kinds of records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    rows, config, others = [], {}, []
    for data in leveldb_records(log.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        kind = entry.WhichOneof("record_type")
        if kind == "history":
            items = entry.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json)
                         for item in items})  # fmt: skip
        elif kind == "run":
            config |= {u.key: json.loads(u.value_json) for u in entry.run.config.update}
        else:
            others.append(kind)
    return rows, config, others


def leveldb_records(data):
    """Yield the records of a LevelDB log with W&B's header of 7 bytes.

    Blocks of 32 KiB hold fragments: checksum (4 bytes), length (2), type (1: whole, 2: first,
    3: middle, 4: last), content.
    """
    position, parts = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def main(name: str, folder: str, first_step: str = "0", *steps: str) -> None:
    run_dir = Path(folder)
    if name == "read-wandb":
        sys.stdout.write(json.dumps(read_wandb(run_dir)))
        return
    _refuse_network(run_dir)
    config = tracked_config(Settings(lora_r=4, data="rows.jsonl"))
    tracker = follow(
        TRACKERS[name](run_dir, RUN_ID, config), [int(step) for step in steps], int(first_step)
    )
    if tracker.failure is not None:
        raise SystemExit(tracker.failure)


if __name__ == "__main__":
    main(*sys.argv[1:])
