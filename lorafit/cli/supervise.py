"""Watches over started processes: passes signals on, and lets none outlive a failure."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from lorafit.cli.launch import Launch, free_port
from lorafit.errors import DeviceError, ExitCode, LorafitError

VARIABLE = "LORAFIT_LAUNCHER"
"""Names a file descriptor whose other end the launcher holds: it ends with the launcher."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PERIOD_SECONDS = 0.1
_GRACE_SECONDS = 20.0
"""How long the others have to end by themselves after one failed, and again after SIGTERM."""


def run_processes(launch: Launch, arguments: Sequence[str]) -> int:
    """Run `lorafit` with these arguments in all processes of this machine; return the exit code.

    It is that of the process that failed first, or of the first process where all were asked to
    stop.

    Raises:
        DeviceError: one was ended by a signal that nobody sent through this launcher.
    """
    port = launch.port or free_port()
    read_end, write_end = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    supervisor = Supervisor(launch.machine_rank * launch.num_processes)
    with supervisor.forwarding():
        try:
            for local_rank in range(launch.num_processes):
                environment = launch.environment(local_rank, port, os.environ)
                processes.append(_start(arguments, environment, read_end, local_rank))
            os.close(read_end)
            return supervisor.wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            os.close(write_end)


def _start(
    arguments: Sequence[str], environment: dict[str, str], read_end: int, local_rank: int
) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "lorafit", *arguments],
        env={**environment, VARIABLE: str(read_end)},
        stdin=subprocess.DEVNULL,
        stdout=None if local_rank == 0 else subprocess.DEVNULL,
        pass_fds=(read_end,),
        # Ctrl-C reaches the launcher alone, which passes it on once.
        process_group=0,
    )


class Supervisor:
    """Waits for the processes of one machine."""

    def __init__(self, first_rank: int = 0) -> None:
        """Count the ranks of the processes from `first_rank`."""
        self._first_rank = first_rank
        self._processes: Sequence[subprocess.Popen[bytes]] = ()
        self._forwarded: set[int] = set()

    @contextlib.contextmanager
    def forwarding(self) -> Iterator[None]:
        """Context in which signals that ask to stop go to every process."""
        before = {number: signal.signal(number, self._forward) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._forwarded.add(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, processes: "Sequence[subprocess.Popen[bytes]]") -> int:
        """Return the exit code of the run, when the last process has ended.

        Raises:
            DeviceError: a process was ended by a signal of someone else.
        """
        self._processes = processes
        for number in self._forwarded:  # it came while they were being started
            self._send(number)
        ended: list[int] = []
        """Positions in the order of their ends."""
        remedies = [signal.SIGTERM, signal.SIGKILL]
        deadline: float | None = None
        killed: set[int] = set()
        while len(ended) < len(processes):
            time.sleep(_PERIOD_SECONDS)
            ended += [
                position
                for position, process in enumerate(processes)
                if position not in ended and process.poll() is not None
            ]
            has_failed = any(processes[position].returncode for position in ended)
            if has_failed and deadline is None:
                deadline = time.monotonic() + _GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline and remedies:
                killed |= {p for p in range(len(processes)) if p not in ended}
                self._send(remedies.pop(0))
                deadline = time.monotonic() + _GRACE_SECONDS
        return self._code([p for p in ended if p not in killed] or ended)

    def _code(self, ended: Sequence[int]) -> int:
        codes = {position: self._processes[position].returncode for position in ended}
        for position, code in codes.items():
            if code < 0 and -code not in self._forwarded:
                raise self._killed(position, -code)
        if self._forwarded and codes.get(0, -1) >= 0:
            return int(codes[0])
        failed = [code for code in codes.values() if code]
        if not failed:
            return int(ExitCode.OK)
        return failed[0] if failed[0] > 0 else 128 - failed[0]

    def _killed(self, position: int, number: int) -> LorafitError:
        name = signal.Signals(number).name if number in signal.valid_signals() else str(number)
        hint = "every checkpoint written so far is intact: run the same command again"
        if number == signal.SIGKILL:
            hint = f"often the system does that when memory runs out (see dmesg); {hint}"
        return DeviceError(
            f"rank {self._first_rank + position} (pid {self._processes[position].pid}) was ended "
            f"by {name}, and the others with it",
            hint=hint,
        )
