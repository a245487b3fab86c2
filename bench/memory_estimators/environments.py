"""A virtual environment for each estimator, and the question that is asked in it."""

import json
from pathlib import Path

import environments
from environments import Environment, installed_versions

from memory_estimators.estimators import Estimator
from memory_estimators.runs import Figures

__all__ = ["ask", "ensure_environment", "installed_versions"]

BENCH = Path(__file__).absolute().parents[1]


def ensure_environment(estimator: Estimator, folder: Path) -> Path:
    """Return the interpreter of the estimator's environment, which is made if it is not there.

    Raises:
        subprocess.CalledProcessError: pip could not install the estimator.
    """
    environment = Environment(estimator.module, estimator.requirements, estimator.needs_torch)
    return environments.ensure_environment(environment, folder)


def ask(estimator: Estimator, python: Path, data: Path) -> dict[str, Figures]:
    """Return the estimator's figures of every run in the folder `data`, by the run's id.

    Raises:
        subprocess.CalledProcessError: the estimator failed; `stderr` holds its own words.
    """
    module = f"memory_estimators.{estimator.module}"
    answer = environments.run([str(python), "-m", module, str(data)], BENCH)
    figures: dict[str, Figures] = json.loads(answer)
    return figures
