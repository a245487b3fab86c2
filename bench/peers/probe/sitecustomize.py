"""Measure training from inside any process: Python imports this file by its name at start.

It adds nothing to the computation: one hook counts the tokens of the batches that the outermost
module is given, one notes the clocks after each optimizer step. Where steps were taken, a record
goes to the folder PROBE_FOLDER when the process ends. PROBE_STARTED is the time (seconds since
the epoch) at which the command was started, PROBE_PAD the id of the padding token. With
PROBE_PROFILE_AFTER=N the step that follows the first N is profiled; its clocks mean nothing.
"""

import atexit
import json
import os
import resource
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_WATCHED = {"torch.nn.modules.module": "watch_forward", "torch.optim.optimizer": "watch_steps"}


class _Clocks:
    """The clocks at the first forward pass and after each step, and the tokens so far."""

    def __init__(self) -> None:
        self.first: dict[str, float] | None = None
        self.steps: list[dict[str, float]] = []
        self.tokens = 0
        self.padded = 0
        self.stops_looking: Any = None
        self.profiler: Any = None
        self.profile: list[dict[str, Any]] = []

    def watch_forward(self, module: ModuleType) -> None:
        """Look for the first forward pass of training: the outermost module comes first."""
        handle = module.register_module_forward_pre_hook(self._on_forward)
        self.stops_looking = handle.remove

    def _on_forward(self, module: Any, _: Any) -> None:
        import torch

        # Validation before training, and modules that are tried while they are built, are not it.
        if not (module.training and torch.is_grad_enabled()):
            return
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trained or _is_pretended(trained[0]):
            return
        self.stops_looking()
        self.first = self._now()
        module.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, arguments: Any, named: dict[str, Any], _: Any) -> None:
        ids = named.get("input_ids")
        ids = arguments[0] if ids is None and arguments else ids
        # Reading a count back from a GPU would make it wait: there the tokens are left uncounted.
        if module.training and ids is not None and ids.device.type == "cpu":
            self.tokens += int((ids != int(os.environ["PROBE_PAD"])).sum())
            self.padded += ids.numel()

    def watch_steps(self, module: ModuleType) -> None:
        """Note the clocks after each optimizer step."""
        module.register_optimizer_step_post_hook(self._on_step)

    def _on_step(self, optimizer: Any, *_: Any) -> None:
        if not _is_pretended(optimizer.param_groups[0]["params"][0]):
            self.steps.append(self._now())
            self._profile(len(self.steps))

    def _profile(self, done: int) -> None:
        """Profile from the end of one step to the end of the next, where that is asked for."""
        after = int(os.environ.get("PROBE_PROFILE_AFTER", "-2"))
        if done not in (after, after + 1):
            return
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if done == after:
            self.profiler = torch.profiler.profile()
            self.profiler.start()
        else:
            self.profiler.stop()
            self.profile = _costs(self.profiler, on_device=torch.cuda.is_available())

    def _now(self) -> dict[str, float]:
        return {
            "cpu_seconds": time.process_time(),
            "wall_seconds": time.time() - float(os.environ["PROBE_STARTED"]),
            "tokens": self.tokens,
            "positions": self.padded,
            "peak_bytes": _peak_bytes(),
        }

    def write(self) -> None:
        """Write the record, if anything was trained here."""
        if self.first is None or not self.steps:
            return
        torch = sys.modules["torch"]
        record = {
            "first_forward": self.first,
            "steps": self.steps,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "profile": self.profile,
        }
        path = Path(os.environ["PROBE_FOLDER"]) / f"{os.getpid()}.json"
        path.write_text(json.dumps(record))


def _costs(profiler: Any, *, on_device: bool) -> list[dict[str, Any]]:
    """Return what took the time of a profiled step: kernels on a GPU, operators on a CPU."""
    column = "self_device_time_total" if on_device else "self_cpu_time_total"
    kernels = [
        {"name": event.key, "seconds": getattr(event, column) / 1e6, "calls": event.count}
        for event in profiler.key_averages()
        if not on_device or "CUDA" in str(event.device_type)
    ]
    return sorted(kernels, key=lambda kernel: -kernel["seconds"])[:60]


def _is_pretended(parameter: Any) -> bool:
    """Return whether a step is only traced, on tensors without memory, as lorafit plans."""
    return bool(parameter.device.type == "meta") or type(parameter.data).__name__ == "FakeTensor"


def _peak_bytes() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    try:
        # Linux's getrusage may answer with the peak of the process that started this one.
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class _Finder(MetaPathFinder):
    """Tells the clocks when a watched module has been imported; imports nothing by itself."""

    def __init__(self, clocks: _Clocks) -> None:
        self._clocks = clocks

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the usual specification with a loader that calls the clocks afterwards."""
        if name not in _WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, getattr(self._clocks, _WATCHED[name]))
        return spec


class _Loader(Loader):
    """A loader that says when it is done."""

    def __init__(self, loader: Loader, then: Any) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as usual."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as usual, then call back."""
        self._loader.exec_module(module)
        self._then(module)


if "PROBE_FOLDER" in os.environ:
    _clocks = _Clocks()
    sys.meta_path.insert(0, _Finder(_clocks))
    atexit.register(_clocks.write)
