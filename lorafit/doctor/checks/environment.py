"""Environment variables that change runs behind one's back."""

import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from lorafit.doctor.check import Outcome, check, ok, skip, warn
from lorafit.doctor.probe import Probe
from lorafit.hardware.processes import VARIABLES
from lorafit.text import excerpt

TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})

_DANGEROUS = {
    "TRUST_REMOTE_CODE": "lets model folders run their own code in other programs",
    "HF_DATASETS_TRUST_REMOTE_CODE": "lets data sets run their own code in other programs",
    "CUDA_LAUNCH_BLOCKING": "makes CUDA wait after every operation: much slower",
    "TORCHDYNAMO_DISABLE": "turns torch.compile off without a word",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "turns the caching allocator off: slow, and estimates fail",
    "PYTORCH_ENABLE_MPS_FALLBACK": "moves operations from the Apple GPU to the CPU unseen: slow",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "lets checkpoint files run code when they are loaded",
}
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_OTHER_ALLOCATION = ("backend", "max_split_size_mb", "roundup_power2_divisions",
                     "garbage_collection_threshold")  # fmt: skip
"""Options of the allocator with which it reserves other memory than the one that is estimated."""
_CUDA_LIBRARY = re.compile(r"lib(cudart|cublas|cublasLt|cudnn|nccl|nvrtc|cusparse)\.so")

_SLOW_PATHS = {
    "NCCL_P2P_DISABLE": "keeps GPUs from writing to each other's memory",
    "NCCL_SHM_DISABLE": "keeps processes of one machine from sharing memory",
    "NCCL_IB_DISABLE": "keeps machines from using InfiniBand",
}
_WATCHDOGS = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "NCCL_ASYNC_ERROR_HANDLING")


@check(
    "env.dangerous",
    "Configuration",
    "Environment variables",
    affects="a run is slower, less safe or different from what its settings say",
)
def environment_variables(probe: Probe) -> Outcome:
    """Check for variables that change runs behind one's back."""
    build = probe.sources.torch_build()
    found = dict(_switches(probe.environ)) | dict(_allocator(probe.environ))
    if build is not None and build.cuda:
        found |= dict(_shadowing(probe.environ))
    if not found:
        return ok("none that changes a run unseen")
    listed = "; ".join(f"{name} {effect}" for name, effect in found.items())
    return warn(listed, "unset them unless you set them on purpose", f"unset {' '.join(found)}")


def _switches(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, effect in _DANGEROUS.items():
        if environ.get(name, "").strip().lower() in TRUE:
            yield name, effect


def _allocator(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Find options that let torch's allocator reserve other memory than is estimated."""
    for name in _ALLOCATOR:
        parts = (part.partition(":") for part in environ.get(name, "").split(","))
        options = {key.strip(): value.strip() for key, _, value in parts}
        changed = [
            option for option in _OTHER_ALLOCATION if options.get(option, "native") != "native"
        ]
        if changed:
            yield name, f"sets {', '.join(changed)}: estimates of GPU memory know the default only"


def _shadowing(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Find folders whose CUDA libraries are loaded in place of those that came with torch."""
    folders = [Path(part) for part in environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    hiding = [folder for folder in folders if _has_cuda_library(folder)]
    if hiding:
        listed = ", ".join(excerpt(str(folder), 80) for folder in hiding)
        yield "LD_LIBRARY_PATH", f"puts CUDA libraries of {listed} before those of torch"


def _has_cuda_library(folder: Path) -> bool:
    try:
        return any(_CUDA_LIBRARY.match(path.name) for path in folder.iterdir())
    except OSError:  # a folder that is not there hides nothing
        return False


@check(
    "env.processes",
    "Configuration",
    "Several processes",
    affects="processes wait for each other for ever, or talk by the slowest way",
)
def process_variables(probe: Probe) -> Outcome:
    """Check what NCCL, gloo and launchers are told by variables; starts no process."""
    names = [name for name in probe.environ if name.startswith(("NCCL_", "TORCH_NCCL_", "GLOO_"))]
    names += [name for name in VARIABLES if name in probe.environ]
    if not names:
        return skip("no NCCL_, GLOO_ or launcher variable is set")
    found = dict(_waits(probe.environ)) | dict(_interfaces(probe.environ, _interfaces_here()))
    found |= dict(_slow_paths(probe.environ))
    if not found:
        return ok(f"nothing that holds processes up among {', '.join(sorted(names))}")
    listed = "; ".join(f"{name} {effect}" for name, effect in found.items())
    unset = dict.fromkeys([*found, *(n for n in VARIABLES if "WORLD_SIZE" in found and n in names)])
    return warn(listed, "unset them unless you set them on purpose", f"unset {' '.join(unset)}")


def _waits(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Find what makes a process wait for others that may never come, or are dead."""
    size = environ.get("WORLD_SIZE", "1").strip()
    if size != "1":
        shown = excerpt(size, 20)
        yield "WORLD_SIZE", f"is {shown}: a run that no launcher starts waits for the others"
    for name in _WATCHDOGS:
        if environ.get(name, "").strip().lower() in _FALSE:
            yield name, "lets processes wait for one that has died"


def _slow_paths(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, effect in _SLOW_PATHS.items():
        if environ.get(name, "").strip().lower() in TRUE:
            yield name, f"{effect}: slower, and needed only where they hang without it"


def _interfaces_here() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def _interfaces(environ: Mapping[str, str], here: list[str]) -> Iterator[tuple[str, str]]:
    """Find network interfaces that are asked for and do not exist.

    NCCL takes beginnings of names, `=` before exact names and `^` before those to leave out
    (NCCL's documentation of NCCL_SOCKET_IFNAME); gloo takes exact names.
    """
    listed = ", ".join(here) or "none"
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = environ.get(name, "").strip()
        is_exact = name.startswith("GLOO") or value.startswith("=")
        if not value or value.startswith("^"):
            continue
        wanted = [part.strip() for part in value.lstrip("=").split(",") if part.strip()]
        matches = [h for h in here for w in wanted if (h == w if is_exact else h.startswith(w))]
        if not matches:
            yield name, f"names {excerpt(value, 40)}, and this machine has {listed}"
