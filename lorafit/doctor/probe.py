"""The machine as the checks see it; tests hand in another one."""

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.config.presets import preset_names
from lorafit.doctor.fit import PresetFit, fit_presets
from lorafit.doctor.isolated import Answer, ProofError, run_proofs
from lorafit.doctor.local import local_model
from lorafit.doctor.question import Question
from lorafit.errors import LorafitError
from lorafit.hardware.cuda import GpuReport
from lorafit.hardware.detect import Sources, detect_device
from lorafit.hardware.info import DeviceInfo

if TYPE_CHECKING:
    from lorafit.model.source import ModelSource


def proofs_for(device: DeviceInfo) -> list[str]:
    """Return the names of the proofs that say something on `device`.

    What is likeliest to take the process down comes last, so that it costs no other answer.
    """
    names = ["repeat", "four-bit"] if device.kind == "cpu" else ["matmul", "repeat", "four-bit"]
    if device.kind == "mps" and device.supports_bfloat16:
        names.insert(2, "bfloat16")
    if device.kind == "cuda" and device.num_devices > 1:
        names.append("nccl")
    return names


@dataclass
class Probe:
    """What the checks may look at. Slow answers are found once and shared between threads."""

    requested_device: str = "auto"
    timeout_seconds: float = 10.0
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    sources: Sources = field(default_factory=Sources)
    output_dir: Path = field(default_factory=lambda: Path("outputs"))
    question: Question = field(default_factory=Question)
    """What was asked for beside the machine: a preset, a model, data, `--deep`."""
    working_folder: Path = field(default_factory=Path.cwd)
    platform: str = sys.platform
    python: str = sys.executable
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    # Of their own, so that nobody who only asks for the device waits for what takes seconds.
    _proofs_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _fits_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _memory: dict[str, Any] = field(default_factory=dict, repr=False)

    def device(self) -> DeviceInfo:
        """Return the detected device.

        Raises:
            LorafitError: the requested device cannot be used.
        """
        with self._lock:
            if "device" not in self._memory:
                try:
                    self._memory["device"] = detect_device(
                        self.requested_device, sources=self.sources
                    )
                except LorafitError as problem:
                    self._memory["device"] = problem
            found = self._memory["device"]
        if isinstance(found, LorafitError):
            raise found
        assert isinstance(found, DeviceInfo)
        return found

    def usable_device(self) -> DeviceInfo | None:
        """Return the detected device, or None when there is a problem that `device` reports."""
        try:
            return self.device()
        except LorafitError:
            return None

    def nvidia(self) -> GpuReport | None:
        """Return what NVML knows, or None without a driver."""
        with self._lock:
            if "nvidia" not in self._memory:
                self._memory["nvidia"] = self.sources.nvml()
            report = self._memory["nvidia"]
        assert report is None or isinstance(report, GpuReport)
        return report

    def proof(self, name: str) -> Answer:
        """Return the answer of a proof that runs in a process of its own.

        The proofs that apply to the device share one process, as importing torch takes longer
        than all of them.

        Raises:
            ProofError: the process died, hung or raised while it made this proof.
        """
        with self._proofs_lock:
            if "proofs" not in self._memory:
                self._memory["proofs"] = self._run_proofs()
            answer = self._memory["proofs"][name]
        if isinstance(answer, ProofError):
            raise answer
        assert isinstance(answer, dict)
        return answer

    def _run_proofs(self) -> dict[str, Answer | ProofError]:
        device = self.device()
        return run_proofs(
            proofs_for(device), device.torch_device, self.python, self.timeout_seconds * 0.9
        )

    def model_config(self, name: str) -> dict[str, Any]:
        """Return config.json of a model; the network is not used.

        Raises:
            ModelError: it is neither a folder, nor in the hub's cache, nor known to lorafit.
        """
        from lorafit.model.architectures import bundled_config
        from lorafit.model.source import locate_model

        known = None if Path(name).is_dir() else bundled_config(name)
        if known is not None:
            return known
        folder = local_model(name, self.huggingface_home())
        return locate_model(str(folder), need_weights=False).config

    def model_source(self, *, need_weights: bool = True) -> "ModelSource":
        """Return the model folder that was asked about, checked; the network is not used.

        Raises:
            ModelError: it is not on this disk, or is not what training needs.
        """
        from lorafit.model.source import locate_model

        name = self.question.model or "microsoft/phi-2"
        folder = local_model(name, self.huggingface_home())
        return locate_model(str(folder), need_weights=need_weights)

    def fits(self) -> list[PresetFit]:
        """Return how the shipped presets fit on the device; empty without one.

        Raises:
            ConfigError: a preset is damaged.
        """
        device = self.usable_device()
        if device is None:
            return []
        with self._fits_lock:
            if "fits" not in self._memory:
                asked = self.question
                every = tuple(n for n in preset_names() if "/" not in n) if asked.is_deep else ()
                exact = (asked.preset,) if asked.preset is not None else every
                self._memory["fits"] = fit_presets(
                    device, self.model_config, model=asked.model, exact=exact
                )
            found = self._memory["fits"]
        assert isinstance(found, list)
        return found

    def huggingface_home(self) -> Path:
        """Return the folder in which models and data sets from the hub are cached."""
        base = self.environ.get("HF_HOME") or os.path.join(
            self.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
        )
        return Path(base).expanduser()
