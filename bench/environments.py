"""A virtual environment for each compared project, made once from its pins and kept."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CONSTRAINTS = Path(__file__).absolute().parents[1] / "constraints.txt"


@dataclass(frozen=True)
class Environment:
    """What an environment holds: exact pins, and what keeps them from working on a CPU.

    `removed` are packages that the pins bring and that are taken out again; `emptied` are modules
    that are put in their place with nothing in them, because the project imports them unasked.
    """

    name: str
    requirements: tuple[str, ...]
    needs_torch: bool = True
    removed: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()

    @property
    def pins(self) -> str:
        """Everything that the environment is made from, as text."""
        lines = [*self.requirements, *(f"without {name}" for name in self.removed)]
        return "\n".join(lines + [f"empty {name}" for name in self.emptied])


def python_of(environment: Environment, environments: Path) -> Path:
    """Return where the interpreter of an environment is, or will be."""
    windows = os.name == "nt"
    return environments / environment.name / ("Scripts" if windows else "bin") / "python"


def ensure_environment(environment: Environment, environments: Path) -> Path:
    """Return the interpreter of an environment, which is made if it is not there.

    Raises:
        subprocess.CalledProcessError: pip could not install the requirements; `stderr` says why.
    """
    folder = environments / environment.name
    python = python_of(environment, environments)
    # Written last: an environment whose making was interrupted, or that has other pins, is redone.
    complete = folder / "pins.txt"
    if complete.is_file() and complete.read_text() == environment.pins:
        return python
    run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    install = [*pip, "install"]
    if environment.needs_torch:
        run([*install, "-c", str(CONSTRAINTS), "torch"])
        install += ["-c", str(CONSTRAINTS)]
    run([*install, *environment.requirements])
    if environment.removed:
        run([*pip, "uninstall", "--yes", *environment.removed])
    for module in environment.emptied:
        _empty_module(python, module)
    complete.write_text(environment.pins)
    return python


def _empty_module(python: Path, module: str) -> None:
    question = "import sysconfig; print(sysconfig.get_path('purelib'))"
    package = Path(run([str(python), "-c", question]).strip()) / module
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text('"""Empty: not needed on a CPU."""\n')


def installed_versions(python: Path) -> dict[str, str]:
    """Return the version of every package in the environment, by name."""
    listing = run(
        [str(python), "-m", "pip", "list", "--disable-pip-version-check", "--format=json"]
    )
    skipped = {"pip", "setuptools", "wheel"}
    return {
        package["name"]: package["version"]
        for package in json.loads(listing)
        if package["name"] not in skipped
    }


def run(command: list[str], folder: Path | None = None) -> str:
    """Return what a command wrote to stdout.

    Raises:
        subprocess.CalledProcessError: it failed; `stderr` holds its own words.
    """
    # PYTHONPATH would mix this environment's packages into the other's.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=variables, check=True, capture_output=True, text=True
    ).stdout
