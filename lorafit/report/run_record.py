"""run.json: what a run was asked, what it decided, where it stands and what came of it."""

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lorafit import __version__
from lorafit.files import write_json

RUN_FILE = "run.json"
SCHEMA_VERSION = 1
Status = Literal["running", "completed", "interrupted", "failed", "diverged", "out_of_memory"]

_PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers",
    "safetensors",
)  # fmt: skip


def installed_versions() -> dict[str, str]:
    """Return the versions of lorafit, Python and the packages that decide a run's numbers."""
    versions = {"lorafit": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


class RunRecord:
    """Keeps run.json true while the run goes on; every write replaces the file as a whole."""

    def __init__(self, run_dir: Path, run_id: str, facts: Mapping[str, Any]) -> None:
        """Open the record of a run; `facts` are settings, plan and fingerprint."""
        self._path = run_dir / RUN_FILE
        self._started = time.monotonic()
        self.notes: list[str] = []
        self._document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "run_id": run_id,
            "status": "running",
            "started_at": _now(),
            "versions": installed_versions(),
            **facts,
            "notes": self.notes,
        }
        self._write()

    def note(self, text: str) -> None:
        """Add something that happened."""
        self.notes.append(text)
        self._write()

    def fact(self, name: str) -> Any:
        """Return what the record holds under `name`."""
        return self._document[name]

    def add(self, **facts: Any) -> None:
        """Add or replace facts."""
        self._document |= facts
        self._write()

    def close(self, status: Status, results: Mapping[str, Any]) -> None:
        """Record how the run ended and what it measured."""
        elapsed = time.monotonic() - self._started
        self._document |= {
            "status": status,
            "ended_at": _now(),
            "elapsed_seconds": round(elapsed, 3),
            "results": dict(results),
        }
        self._write()

    def _write(self) -> None:
        write_json(self._path, self._document)


class NoRecord:
    """The record of a process that keeps none: the first of the run does, for all of them."""

    def note(self, text: str) -> None:
        """Forget it."""

    def fact(self, name: str) -> Any:
        """Return what an empty record holds."""
        return []

    def add(self, **facts: Any) -> None:
        """Forget them."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
