"""The Python that runs lorafit."""

import platform
import sys

from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.probe import Probe

_MIN_PYTHON = (3, 11)


@check(
    "python.version",
    "Python",
    "Python version",
    affects="lorafit and torch do not run on older or 32-bit Pythons",
)
def python_version(probe: Probe) -> Outcome:
    """Check for a 64-bit Python that is new enough."""
    measured = f"{platform.python_version()}, {'64' if sys.maxsize > 2**32 else '32'}-bit"
    required = ">= {}.{}, 64-bit".format(*_MIN_PYTHON)
    if sys.version_info >= _MIN_PYTHON and sys.maxsize > 2**32:
        return ok(measured, measured=measured, required=required)
    return error(
        f"Python {measured} is too old",
        "install Python 3.11 or later, 64-bit",
        "brew install python@3.12" if probe.platform == "darwin" else "uv python install 3.12",
        measured=measured,
        required=required,
    )


@check(
    "python.venv",
    "Python",
    "Virtual environment",
    affects="packages of other projects and of the system can replace those lorafit needs",
)
def virtual_environment(probe: Probe) -> Outcome:
    """Check that packages are kept apart from the system's."""
    if probe.environ.get("CONDA_PREFIX") and sys.prefix != sys.base_prefix:
        return warn(
            "a virtual environment runs inside an active conda environment",
            "leave the conda environment, so that its libraries are not picked up",
            "conda deactivate",
        )
    if sys.prefix != sys.base_prefix:
        return ok(sys.prefix)
    if probe.environ.get("CONDA_PREFIX"):
        return ok(f"conda environment {probe.environ['CONDA_PREFIX']}")
    return warn(
        f"{sys.executable} is the system's Python",
        "make an environment of its own for lorafit",
        "python3 -m venv .venv && . .venv/bin/activate",
        "pip install lorafit",
    )


@check(
    "python.arch",
    "Python",
    "Native Python",
    affects="an Intel Python on Apple silicon cannot use the GPU",
)
def native_python(probe: Probe) -> Outcome:
    """Check that Python on Apple silicon is an arm64 build, not Intel under Rosetta."""
    if probe.platform != "darwin":
        return skip("only for Macs")
    apple = probe.sources.apple()
    if apple is None or platform.machine() == "arm64":
        return ok(platform.machine())
    return error(
        f"this Python is built for {platform.machine()}, the chip is an {apple.chip}",
        "install an arm64 Python and make the environment anew",
        "arch -arm64 brew install python@3.12",
    )
