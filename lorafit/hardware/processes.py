"""Which of the processes of a run this one is, as its launcher says by environment variables."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from lorafit.errors import UsageError
from lorafit.text import excerpt

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What torchrun, `accelerate launch` and lorafit itself tell each process that they start."""

_ENGINES = {
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "--use_megatron_lm"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("accelerate's parallelism", "--use_parallelism_config"),
}
"""What `accelerate launch` says by a variable to have set up, and the option that asks for it."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of a run."""

    rank: int = 0
    """Its number among all processes, from 0."""
    size: int = 1
    """Processes of the run, over all machines."""
    local_rank: int = 0
    """Its number among those of its machine, which is also the number of its GPU."""
    local_size: int = 1
    """Processes of the run on this machine."""

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all processes of the run share this machine."""
        return self.local_size == self.size


def processes_of(environ: Mapping[str, str]) -> Processes:
    """Return the place of this process; alone where no launcher said otherwise.

    Raises:
        UsageError: the variables contradict each other, one is missing, or they ask for an engine
            that would take the training over.
    """
    _refuse_other_engines(environ)
    if environ.get("WORLD_SIZE", "1") == "1":
        return Processes()
    rank, size, local_rank = (_number(environ, name) for name in VARIABLES[:3])
    local_size = _number(environ, VARIABLES[3], size)
    if size < 1 or rank >= size or local_rank >= local_size or local_size > size:
        found = " ".join(f"{name}={excerpt(environ.get(name, ''), 20)}" for name in VARIABLES)
        raise UsageError(
            f"{found} contradict each other", hint="let torchrun or accelerate launch set them"
        )
    if size > 1 and not (environ.get("MASTER_ADDR") and environ.get("MASTER_PORT")):
        raise UsageError(
            "is not set, so that the processes cannot find each other",
            where="MASTER_ADDR and MASTER_PORT",
            hint="let torchrun, accelerate launch or lorafit train --num-processes set them",
        )
    return Processes(rank, size, local_rank, local_size)


def end_with_parent() -> None:
    """Let this process, which `multiprocessing` started, end when the one that asked for it ends.

    A parent that is killed tells nobody, and where a fork server starts the processes, the default
    on Linux from Python 3.14 on, it is that server's death which they would notice.
    """
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _refuse_other_engines(environ: Mapping[str, str]) -> None:
    """Refuse what would wrap model and optimizer: the step and its checkpoints are lorafit's own.

    DeepSpeed and FSDP are not among them: what their configuration asks for is read as settings.
    """
    for variable, (engine, option) in _ENGINES.items():
        if environ.get(variable, "").lower() in ("true", "1", "yes"):
            raise UsageError(
                f"{variable} is set: accelerate launch was asked for {engine}, which would have no "
                "effect on lorafit's own training step",
                hint=f"leave {option} (or that part of accelerate's config) out; --parallelism "
                "fsdp shares the base weights among the processes, as ZeRO 3 does",
            )


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise UsageError(
            f"is {excerpt(str(text), 40)}, where WORLD_SIZE says that there are several processes",
            where=name,
            hint="let torchrun or accelerate launch set it, or unset WORLD_SIZE",
        )
    return int(text)
