"""Commands in real processes of their own, started in a fraction of a second.

A server process imports torch and transformers once; every command is forked from it. It has its
own process id, signals, limits and files, and ends with its own exit code.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from tiny import ROOT, Outcome, child_environment

# A parallel section before the fork would leave threads behind that the child waits for.
_SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"}
_PRELOADED = (
    "torch", "transformers.trainer", "transformers.models.phi.modeling_phi", "peft", "accelerate",
    "datasets", "safetensors.torch", "rich.progress", "lorafit.cli.train",
    "lorafit.training.trainer", "lorafit.training.run", "lorafit.training.final",
    "lorafit.cli.plan_view", "lorafit.cli.progress", "lorafit.memory.tracer", "preload",
)  # fmt: skip


class Fault(NamedTuple):
    """Something to go wrong in a command: a function of `faults.injections`, and its arguments."""

    name: str
    arguments: dict[str, Any]


class Forked:
    """A running command."""

    def __init__(self, process: BaseProcess, folder: Path) -> None:
        self._process = process
        self._folder = folder

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return self._written("stderr")

    def _written(self, name: str) -> str:
        # A command that is killed early enough has opened neither stream.
        path = self._folder / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def is_running(self) -> bool:
        """Return whether it has not ended yet."""
        return self._process.is_alive()

    def is_stopped(self) -> bool:
        """Return whether a signal has stopped it (SIGSTOP)."""
        import psutil

        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)
        except psutil.NoSuchProcess:
            return False

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):  # it has ended in between
                os.kill(self.pid, number)

    def wait(self, timeout: float = 600) -> Outcome:
        """Wait for its end; a negative code is the signal that ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"it did not end within {timeout} s:\n{self.err}")
        code = self._process.exitcode
        self._process.close()
        return Outcome(code, self._written("stdout"), self.err)


class ForkServer:
    """Forks commands from a process that has everything imported."""

    def __init__(self, scratch: Path, **environment: str) -> None:
        self._scratch = scratch
        self._count = 0
        self._environment = child_environment(**_SINGLE_THREADED, **environment)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        self._start_server()

    def _start_server(self) -> None:
        from multiprocessing import forkserver

        before = dict(os.environ)
        os.environ.update(_SINGLE_THREADED, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
        try:
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def start(self, *arguments: object, fault: Fault | None = None, **environment: str) -> Forked:
        """Start a lorafit command."""
        return self._start("lorafit.cli.main", [[str(a) for a in arguments]], fault, environment)

    def start_function(self, module: str, *arguments: object) -> Forked:
        """Start the function `main` of a module."""
        return self._start(module, [str(a) for a in arguments], None, {})

    def _start(
        self, module: str, arguments: list[Any], fault: Fault | None, environment: dict[str, str]
    ) -> Forked:
        self._count += 1
        folder = self._scratch / f"command-{self._count}"
        folder.mkdir(parents=True)
        environment = {**self._environment, **environment}
        process = self._context.Process(
            target=_command, args=(module, arguments, folder, environment, fault)
        )
        process.start()
        return Forked(process, folder)

    def run(
        self,
        *arguments: object,
        fault: Fault | None = None,
        timeout: float = 600,
        **environment: str,
    ) -> Outcome:
        """Run a lorafit command to its end."""
        return self.start(*arguments, fault=fault, **environment).wait(timeout)


def _command(
    module: str,
    arguments: list[Any],
    folder: Path,
    environment: dict[str, str],
    fault: Fault | None,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Being forked by a server is this test's own doing: its data workers start as any command's.
    multiprocessing.set_start_method(None, force=True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    if fault is not None:
        getattr(importlib.import_module("faults.injections"), fault.name)(**fault.arguments)
    importlib.import_module(module).main(*arguments)
