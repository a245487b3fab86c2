"""Packages and files that get in the way of others."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from lorafit.doctor.check import Outcome, check, ok, warn
from lorafit.doctor.probe import Probe

_STACK = (
    "lorafit", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors",
    "tokenizers", "bitsandbytes", "huggingface-hub", "typer", "pydantic",
)  # fmt: skip

_RISKY = {
    "kernels": "transformers can fetch compiled code from the hub with it; lorafit switches that "
    "off (USE_HUB_KERNELS=0), other programs do not",
    "xformers": "it is built for one release of torch and breaks with every other",
    "flash-attn": "it is built for one release of torch and CUDA; --attn-implementation sdpa needs "
    "none of it",
    "apex": "transformers prefers its layers, whose numbers differ",
    "unsloth": "importing it patches transformers and PEFT in place",
}
"""Packages that change what torch or transformers do, and how."""

_NAMES = (
    "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors",
    "bitsandbytes", "evaluate", "numpy", "random", "types", "typing", "queue", "code", "token",
    "select", "logging", "copy", "grp",
)  # fmt: skip
"""Modules that scripts are often named after."""


@check(
    "pkg.mutual",
    "Packages",
    "Packages fit each other",
    affects="a package that is older or newer than another expects fails in the middle of a run",
)
def packages_fit(probe: Probe) -> Outcome:
    """Compare what the packages of the stack declare to need with what is installed."""
    broken = [text for package in _STACK for text in _unmet(package)]
    if broken:
        return warn(
            "; ".join(broken),
            "install releases that fit each other",
            "pip install -U lorafit",
            "pip check",
            measured=f"{len(broken)} do not fit",
        )
    return ok("every requirement of the packages above is met")


def _unmet(package: str) -> Iterator[str]:
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in lines:
        try:
            needed = Requirement(line)
        except InvalidRequirement:
            continue
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} needs {needed.name}, which is not installed"
            continue
        if not needed.specifier.contains(version, prereleases=True):
            yield f"{package} needs {needed.name}{needed.specifier}, and {version} is installed"


@check(
    "pkg.conflicts",
    "Packages",
    "Nothing in the way",
    affects="a file or package of this name is imported in place of, or into, the real one",
)
def conflicting_packages(probe: Probe) -> Outcome:
    """Look for files here that hide a library, and for packages that patch others."""
    hidden = [name for name in _NAMES if _hides(probe.working_folder, name)]
    risky = [name for name in _RISKY if _is_installed(name)]
    if not hidden and not risky:
        return ok("no file in this folder hides a library; no package that patches others")
    facts = [f"{name}.py or {name}/ in this folder hides the library {name}" for name in hidden]
    facts += [f"{name} is installed: {_RISKY[name]}" for name in risky]
    commands = [f"mv {name}.py my_{name}.py" for name in hidden if _is_file(probe, name)]
    if risky:
        commands.append(f"pip uninstall {' '.join(risky)}")
    return warn("; ".join(facts), "rename the files; remove what you do not use", *commands)


def _hides(folder: Path, name: str) -> bool:
    return (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()


def _is_file(probe: Probe, name: str) -> bool:
    return (probe.working_folder / f"{name}.py").is_file()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
