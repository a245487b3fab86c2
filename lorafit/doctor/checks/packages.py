"""Installed packages against the ranges that lorafit's own metadata declares."""

import importlib.metadata
import tomllib
from functools import partial
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from lorafit.doctor.check import Outcome, check, error, ok, skip, untried, warn
from lorafit.doctor.isolated import ProofError, ProofTimeoutError
from lorafit.doctor.probe import Probe
from lorafit.hardware.torch_build import cuda_wheel_command

_CHECKED = {
    "torch": "nothing can be computed, and releases before the range have known security holes",
    "transformers": "models and the training loop come from here; other releases behave otherwise",
    "accelerate": "the training loop needs it for devices and mixed precision",
    "peft": "LoRA adapters are made and saved by it",
    "safetensors": "weights are read and written with it",
    "tokenizers": "text cannot be split into tokens",
    "datasets": "training data is read with it",
}

_MAX_FOUR_BIT_ERROR = 0.25
"""Relative error of a 4-bit product of normal numbers is about 0.1; broken kernels give ~1."""


def declared_requirements() -> dict[str, Requirement]:
    """Return what lorafit needs, by package: from its metadata, else a checkout's pyproject.toml.

    Requirements of extras are left out.
    """
    try:
        lines = importlib.metadata.requires("lorafit") or []
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[3] / "pyproject.toml"
        if not project.is_file():
            return {}
        lines = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    found = [Requirement(line) for line in lines]
    return {
        requirement.name.lower(): requirement
        for requirement in found
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def required_range(package: str) -> Requirement | None:
    """Return the range of `package` that lorafit or, failing that, transformers declares."""
    declared = declared_requirements()
    if package in declared:
        return declared[package]
    try:
        lines = importlib.metadata.requires("transformers") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.name == package and "extra" not in line:
            return requirement
    return None


def package_in_range(package: str, probe: Probe) -> Outcome:
    """Check that `package` is installed in a release that lorafit supports."""
    requirement = required_range(package)
    required = str(requirement.specifier) if requirement and requirement.specifier else "any"
    command = f'pip install -U "{package}{requirement.specifier if requirement else ""}"'
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return error(f"{package} is not installed", "install it", command, required=required)
    if requirement and not requirement.specifier.contains(version, prereleases=True):
        return error(
            f"{package} {version} is outside the supported range {required}",
            "install a supported release",
            command,
            measured=version,
            required=required,
        )
    return ok(version, measured=version, required=required)


for _package, _affects in _CHECKED.items():
    check(f"pkg.{_package}", "Packages", _package, affects=_affects)(
        partial(package_in_range, _package)
    )


@check(
    "pkg.torch_build",
    "Packages",
    "torch fits the GPU",
    affects="training runs on the CPU, many times slower, although a GPU is here",
    docs_url="https://pytorch.org/get-started/locally/",
)
def torch_build(probe: Probe) -> Outcome:
    """Check that a machine with an NVIDIA GPU has a torch with CUDA."""
    build = probe.sources.torch_build()
    if build is None:
        return skip("torch is not installed")
    measured = f"{build.version}, {'CUDA ' + build.cuda if build.cuda else 'no CUDA'}"
    report = probe.nvidia()
    if report is None or not report.gpus:
        return ok(f"{measured}; no NVIDIA GPU here that would need CUDA", measured=measured)
    if build.cuda is None:
        return error(
            f"{report.gpus[0].name} is here, but torch {build.version} was built without CUDA",
            "install torch with CUDA",
            cuda_wheel_command(build, report.driver),
            measured=measured,
            required="a build with CUDA",
        )
    return ok(measured, measured=measured)


@check(
    "pkg.bitsandbytes",
    "Packages",
    "4-bit (bitsandbytes)",
    affects="presets and settings with quantization nf4 do not run; all others do",
    docs_url="https://huggingface.co/docs/bitsandbytes/installation",
)
def four_bit_multiply(probe: Probe) -> Outcome:
    """Quantize, multiply and compare with float32, in a process of its own."""
    install = 'pip install -U "bitsandbytes>=0.50"'
    try:
        version = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return warn("bitsandbytes is not installed", "install it to use quantization", install)
    device = probe.usable_device()
    if device is None:
        return skip("no device can be used")
    try:
        answer = probe.proof("four-bit")
    except ProofTimeoutError as late:
        what = f"bitsandbytes {version} was not proved to work"
        return untried(what, "pkg.bitsandbytes", late)
    except ProofError as failure:
        return warn(
            f"bitsandbytes {version} cannot multiply on {device.torch_device}: {failure}",
            "install a release that fits this device, or train with --quantization none",
            install,
            measured=version,
        )
    error_percent = 100 * answer["relative_error"]
    measured = f"{error_percent:.1f} % off float32"
    if not answer["relative_error"] < _MAX_FOUR_BIT_ERROR:
        return warn(
            f"bitsandbytes {version} multiplies wrongly on {device.torch_device}: {measured}",
            "install another release, or train with --quantization none",
            install,
            measured=measured,
            required=f"< {100 * _MAX_FOUR_BIT_ERROR:.0f} %",
        )
    return ok(
        f"{version} works on {device.torch_device}: {measured}, as 4 bits should be",
        measured=measured,
        required=f"< {100 * _MAX_FOUR_BIT_ERROR:.0f} %",
    )
