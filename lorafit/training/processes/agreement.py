"""What the processes of a run must agree on before the first step: which run, and from where."""

import json
from pathlib import Path
from typing import Any

from lorafit.errors import CheckpointError, InputError
from lorafit.text import excerpt
from lorafit.training.checkpoints.checkpoint import read_manifest
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.processes.distributed import World
from lorafit.training.run_folder.fingerprint import differences, fingerprint_of
from lorafit.training.run_folder.folder import Start


def announce(world: World, plan: RunPlan, start: Start) -> None:
    """Tell the other processes where the run begins, and what run it is.

    Raises:
        InputError: another process would train another run.
    """
    if world.size == 1:
        return
    document = {
        "run_id": start.run_id,
        "checkpoint": None if start.checkpoint is None else str(start.checkpoint.folder),
        "is_complete": start.is_complete,
        "facts": _facts(plan),
    }
    world.decide(lambda: document)
    _answer(world, [])


def follow(world: World, plan: RunPlan) -> Start:
    """Return where the run begins, as the first process announces it.

    Raises:
        InputError: this process would train another run: other data, weights, settings or device.
        CheckpointError: the checkpoint does not lie where this process can read it.
    """
    announced = world.decide(dict)
    # Through JSON, as the first process's went.
    own = json.loads(json.dumps(_facts(plan)))
    lines = [
        f"  {name}  rank 0: {excerpt(str(then), 40)}  rank {world.rank}: {excerpt(str(now), 40)}"
        for name, (then, now) in differences(announced["facts"], own).items()
    ]
    _answer(world, lines)
    folder = announced["checkpoint"]
    return Start(
        announced["run_id"],
        None if folder is None else _checkpoint(folder),
        announced["is_complete"],
        "as the first process decided",
    )


def _facts(plan: RunPlan) -> dict[str, Any]:
    """Return what must be equal in all processes: the run, and what they share to compute it.

    A run may be continued with whole weights that began with shared ones, but on every machine.
    """
    return {**fingerprint_of(plan), "parallelism": plan.parallelism.value}


def _answer(world: World, differing: list[str]) -> None:
    """Exchange what differs, so that every process stops if one would train another run."""
    found = [json.loads(text) for text in world.gather(json.dumps(differing).encode())]
    other: list[Any] = next((lines for lines in found if lines), [])
    if other:
        raise InputError(
            "the processes would not train the same run:\n" + "\n".join(other),
            hint="every machine needs the same data, base model, settings and kind of device; "
            "--parallelism settles what auto decides",
        )


def _checkpoint(folder: str) -> Any:
    if not Path(folder).is_dir():
        raise CheckpointError(
            "the checkpoint to continue from cannot be seen from this machine",
            where=folder,
            hint="--output-dir must be on a file system that all machines share",
        )
    return read_manifest(Path(folder))
