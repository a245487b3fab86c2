"""A virtual environment for each estimator, made once and kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

from memory_estimators.estimators import Estimator
from memory_estimators.runs import Figures

BENCH = Path(__file__).absolute().parents[1]
CONSTRAINTS = BENCH.parent / "constraints.txt"


def ensure_environment(estimator: Estimator, environments: Path) -> Path:
    """Return the interpreter of the estimator's environment, which is made if it is not there.

    Raises:
        subprocess.CalledProcessError: pip could not install the estimator.
    """
    folder = environments / estimator.module
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pins = "\n".join(estimator.requirements)
    # Written last: an environment whose making was interrupted, or that has other pins, is redone.
    complete = folder / "pins.txt"
    if complete.is_file() and complete.read_text() == pins:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if estimator.needs_torch:
        _run([*install, "-c", str(CONSTRAINTS), "torch"])
        install += ["-c", str(CONSTRAINTS)]
    _run([*install, *estimator.requirements])
    complete.write_text(pins)
    return python


def installed_versions(python: Path) -> dict[str, str]:
    """Return the version of every package in the environment, by name."""
    listing = _run(
        [str(python), "-m", "pip", "list", "--disable-pip-version-check", "--format=json"]
    )
    skipped = {"pip", "setuptools", "wheel"}
    return {
        package["name"]: package["version"]
        for package in json.loads(listing)
        if package["name"] not in skipped
    }


def ask(estimator: Estimator, python: Path, data: Path) -> dict[str, Figures]:
    """Return the estimator's figures of every run in the folder `data`, by the run's id.

    Raises:
        subprocess.CalledProcessError: the estimator failed; `stderr` holds its own words.
    """
    module = f"memory_estimators.{estimator.module}"
    figures: dict[str, Figures] = json.loads(_run([str(python), "-m", module, str(data)]))
    return figures


def _run(command: list[str]) -> str:
    # PYTHONPATH would mix this environment's packages into the estimator's.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=BENCH, env=environment, check=True, capture_output=True, text=True
    ).stdout
