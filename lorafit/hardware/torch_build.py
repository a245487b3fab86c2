"""The installed torch, the CUDA that it was built for, and the one that a driver can run."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TorchBuild:
    """The installed torch, read from its files: importing it takes seconds."""

    version: str
    cuda: str | None
    """The CUDA release it was built for; None for a build without CUDA."""


def read_torch_build() -> TorchBuild | None:
    """Return the version and CUDA release of the installed torch, or None without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    return parse_torch_version(text)


def parse_torch_version(text: str) -> TorchBuild:
    """Return what `torch/version.py` says."""
    version = re.search(r"^__version__[^=]*= *'([^']*)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda[^=]*= *'([^']*)'", text, re.MULTILINE)
    return TorchBuild(version.group(1) if version else "unknown", cuda.group(1) if cuda else None)


def driver_branch(driver: str | None) -> int:
    """Return the branch of a driver version: 535 of `535.129.03`; 0 when it is unknown."""
    match = re.match(r"\d+", driver or "")
    return int(match.group()) if match else 0


def cuda_wheel_command(build: TorchBuild | None, driver: str | None) -> str:
    """Return the pip line for a torch with the newest CUDA that `driver` can run.

    CUDA 13 needs driver branch 580 and CUDA 12.8 branch 570 (which Blackwell GPUs have at
    least); every 12.x release runs on branch 525 or later.
    """
    branch = driver_branch(driver)
    cuda = "cu130" if branch >= 580 else "cu128" if branch >= 570 else "cu126"
    version = build.version.split("+")[0] if build else ""
    pin = f"=={version}" if re.fullmatch(r"[0-9.]+", version) else ""
    return (
        f'pip install --force-reinstall "torch{pin}" --index-url '
        f"https://download.pytorch.org/whl/{cuda}"
    )
