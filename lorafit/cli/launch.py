"""`lorafit train --num-processes 2`: the processes of a run on this machine, started and ended.

The processes find each other as those of torchrun do, by RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT; each is a `lorafit train` with the same command line.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from lorafit.cli.gpus import visible_names, with_gpus
from lorafit.cli.settings_flags import RunChoices
from lorafit.config.batch import resolve_batch
from lorafit.config.layers import Resolved
from lorafit.config.parallelism import verify_parallelism
from lorafit.errors import DeviceError, UsageError
from lorafit.hardware.detect import detect_device
from lorafit.hardware.info import DeviceInfo
from lorafit.hardware.processes import Processes
from lorafit.hardware.visible import VARIABLE
from lorafit.text import excerpt

PANEL = "Several processes"
DEFAULT_PORT = 29500
_UNLENT_PORTS = range(20_000, 32_768)
"""Below the ports that Linux (32768 on) and macOS (49152 on) lend to connections."""

NumProcesses = Annotated[
    int | None,
    typer.Option(
        help="Processes on this machine, each on a device of its own; they share the rows of "
        "every step.",
        metavar="INTEGER",
        rich_help_panel=PANEL,
        min=1,
        max=1024,
    ),
]
NumMachines = Annotated[
    int | None,
    typer.Option(
        help="Machines of the run; start the command on each.",
        metavar="INTEGER",
        rich_help_panel=PANEL,
        min=1,
        max=100_000,
    ),
]
MachineRank = Annotated[
    int | None,
    typer.Option(
        help="Number of this machine, from 0, which is the main one.",
        metavar="INTEGER",
        rich_help_panel=PANEL,
        min=0,
    ),
]
MainProcessIp = Annotated[
    str | None,
    typer.Option(help="Address of the main machine.", metavar="ADDRESS", rich_help_panel=PANEL),
]
MainProcessPort = Annotated[
    int | None,
    typer.Option(
        help=f"Free port of the main machine [{DEFAULT_PORT} with several machines].",
        metavar="INTEGER",
        rich_help_panel=PANEL,
        min=1024,
        max=65535,
    ),
]
OPTIONS = (
    "--gpus", "--num-processes", "--num-machines", "--machine-rank", "--main-process-ip",
    "--main-process-port",
)  # fmt: skip
"""What the started processes must not see again; each takes a value."""


@dataclass(frozen=True)
class Launch:
    """Processes to start here, and where all of them meet."""

    num_processes: int
    num_machines: int = 1
    machine_rank: int = 0
    address: str = "127.0.0.1"
    port: int | None = None
    """None: one that is free."""

    @property
    def size(self) -> int:
        """Processes on all machines."""
        return self.num_processes * self.num_machines

    def environment(self, local_rank: int, port: int, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of one of the processes."""
        changes = {
            "RANK": str(self.machine_rank * self.num_processes + local_rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.num_processes),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(port),
            # The libraries' own notes about sockets are for those who write launchers.
            "TORCH_CPP_LOG_LEVEL": environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        }
        if self.num_machines == 1:
            # A machine whose own name cannot be resolved still has its loopback.
            changes["GLOO_SOCKET_IFNAME"] = environ.get("GLOO_SOCKET_IFNAME", _loopback())
        return {**environ, **changes}


def requested_launch(
    gpus: str | None,
    num_processes: int | None,
    num_machines: int | None,
    machine_rank: int | None,
    main_process_ip: str | None,
    main_process_port: int | None,
    here: Processes,
) -> Launch | None:
    """Return what the options ask to start; None: this process is to train.

    Raises:
        UsageError: options are missing, contradict each other, or the processes exist already.
    """
    named = len(gpus.split(",")) if gpus else 1
    processes, machines = num_processes or named, num_machines or 1
    if here.size > 1:
        _refuse_inside(gpus, num_processes, num_machines, here)
        return None
    if num_processes is not None and named > 1 and num_processes != named:
        raise UsageError(
            f"--gpus {excerpt(str(gpus), 40)} names {named} GPUs, and --num-processes is "
            f"{num_processes}",
            hint="leave --num-processes out: it follows",
        )
    if machines == 1:
        if machine_rank or main_process_ip or main_process_port:
            raise UsageError(
                "--machine-rank, --main-process-ip and --main-process-port are for several "
                "machines",
                hint="add --num-machines, or leave them out",
            )
        return Launch(processes) if processes > 1 else None
    if machine_rank is None or not main_process_ip:
        raise UsageError(
            f"--num-machines {machines} needs --machine-rank and --main-process-ip",
            hint="--machine-rank 0 on the main machine, whose address is --main-process-ip; 1, "
            "2, ... on the others",
        )
    if machine_rank >= machines:
        raise UsageError(
            f"--machine-rank {machine_rank} is beyond the {machines} machines, which count from 0",
            hint=f"--machine-rank {machines - 1} is the last one",
        )
    port = main_process_port or DEFAULT_PORT
    return Launch(processes, machines, machine_rank, main_process_ip, port)


def _refuse_inside(
    gpus: str | None, num_processes: int | None, num_machines: int | None, here: Processes
) -> None:
    """Refuse options for starting processes in one that a launcher started."""
    wanted = (num_processes or here.local_size) * (num_machines or 1)
    if gpus is not None or wanted not in (here.size, here.local_size):
        raise UsageError(
            f"a launcher started {here.size} processes already, and these options ask for others",
            where="--gpus" if gpus is not None else "--num-processes",
            hint=f"leave them out; {VARIABLE} tells a launcher which GPUs to use",
        )


def devices_of(choices: RunChoices, gpus: str | None, launch: Launch | None) -> RunChoices:
    """Return the choices for the GPUs of `--gpus`, which become the visible ones."""
    if launch is None or gpus is None:
        return with_gpus(choices, gpus)
    os.environ[VARIABLE] = ",".join(visible_names(choices, gpus))
    return replace(choices, gpus=gpus, flags={**choices.flags, "device": "cuda"})


def verify_launch(launch: Launch, resolved: Resolved, device: DeviceInfo) -> None:
    """Find what is wrong with the processes before any is started.

    Raises:
        ConfigError: the effective batch cannot be split over them, or the weights cannot be shared.
        DeviceError: there are fewer devices than processes.
    """
    verify_group(resolved, device)
    verify_parallelism(resolved, launch.size)
    resolve_batch(resolved, launch.size)
    if device.kind == "cuda" and device.detected:
        detect_device(f"cuda:{launch.num_processes - 1}")


def verify_group(resolved: Resolved, device: DeviceInfo) -> None:
    """Refuse devices that no several processes can share.

    Raises:
        DeviceError: it is an Apple GPU, of which there is one.
        UsageError: one certain GPU was asked for.
    """
    if device.kind == "mps":
        raise DeviceError(
            "an Apple GPU takes one process",
            where="--num-processes",
            hint="leave --num-processes out; the effective batch of a preset stays what it is",
        )
    if resolved.settings.device.startswith("cuda:"):
        raise UsageError(
            f"--device {resolved.settings.device} is one GPU, and several processes take one each",
            hint="--gpus 0,1 names them",
        )


def device_of(here: Processes, resolved: Resolved, device: DeviceInfo) -> DeviceInfo:
    """Return the device of this process among several."""
    if here.size == 1:
        return device
    verify_group(resolved, device)
    if device.kind != "cuda" or not device.detected:
        return device
    return detect_device(f"cuda:{here.local_rank}")


def without_launch_options(arguments: Sequence[str]) -> list[str]:
    """Return a command line without the options that start processes."""
    kept: list[str] = []
    skips_value = options_ended = False
    for word in arguments:
        if skips_value:
            skips_value = False
            continue
        options_ended = options_ended or word == "--"
        name, equals, _ = word.partition("=")
        if not options_ended and name.replace("_", "-") in OPTIONS:
            skips_value = not equals
            continue
        kept.append(word)
    return kept


def free_port() -> int:
    """Return a port of this machine that is free now, and that stays so unless it is asked for.

    The processes take it seconds later. One that the system picks could meanwhile be lent to any
    connection; those from which this one is drawn are never lent.
    """
    port = 0
    for _ in range(100):
        port = _UNLENT_PORTS[secrets.randbelow(len(_UNLENT_PORTS))]
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("", port))
            return port
    return port


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), "lo")
