"""The machine as the checks see it; tests hand in another one."""

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError
from lorafit.hardware.cuda import GpuReport
from lorafit.hardware.detect import Sources, detect_device
from lorafit.hardware.info import DeviceInfo


@dataclass
class Probe:
    """What the checks may look at. Slow answers are found once and shared between threads."""

    requested_device: str = "auto"
    timeout_seconds: float = 10.0
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    sources: Sources = field(default_factory=Sources)
    output_dir: Path = field(default_factory=lambda: Path("outputs"))
    platform: str = sys.platform
    python: str = sys.executable
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
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

    def huggingface_home(self) -> Path:
        """Return the folder in which models and data sets from the hub are cached."""
        base = self.environ.get("HF_HOME") or os.path.join(
            self.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
        )
        return Path(base).expanduser()
