"""CPU, RAM and disk."""

import os
import shutil
import tempfile
from pathlib import Path

from lorafit.doctor.check import Outcome, check, error, ok, skip, warn
from lorafit.doctor.probe import Probe
from lorafit.files import cache_folder
from lorafit.hardware.cpu import cpu_device_info
from lorafit.units import GIB, format_bytes

_MIN_RAM_BYTES = 8 * GIB
"""Phi-2's 16-bit weights, 5.2 GiB, pass through RAM once, beside torch and the system."""
_MIN_OUTPUT_BYTES = 2 * GIB
_MIN_CACHE_BYTES = 8 * GIB
"""Phi-2's files on the hub are 5.6 GB."""


@check(
    "cpu.info",
    "System",
    "CPU",
    affects="more threads than cores make every step slower",
)
def cpu_cores(probe: Probe) -> Outcome:
    """Check the cores this process may use, and OMP_NUM_THREADS."""
    cpu = cpu_device_info(probe.sources.cpu())
    cores = cpu.num_cpu_cores or 1
    threads = probe.environ.get("OMP_NUM_THREADS")
    measured = f"{cores} cores"
    if threads is not None and not threads.split(",")[0].strip().isdigit():
        return warn(
            f"OMP_NUM_THREADS={threads!r} is not a number",
            "unset it",
            "unset OMP_NUM_THREADS",
            measured=measured,
        )
    if threads is not None and int(threads.split(",")[0]) > cores:
        return warn(
            f"OMP_NUM_THREADS={threads}, but this process may use {measured}",
            "set it to the cores there are",
            f"export OMP_NUM_THREADS={cores}",
            measured=measured,
        )
    return ok(cpu.reason, measured=measured)


@check(
    "ram.total",
    "System",
    "RAM",
    affects="loading Phi-2 takes 5.2 GiB of RAM; the system ends a process that takes too much",
)
def memory_for_loading(probe: Probe) -> Outcome:
    """Check RAM, with the control group's limit."""
    cpu = cpu_device_info(probe.sources.cpu())
    free_bytes = cpu.free_bytes or 0
    measured = f"{format_bytes(free_bytes)} free of {format_bytes(cpu.usable_bytes)}"
    required = format_bytes(_MIN_RAM_BYTES)
    if cpu.usable_bytes < _MIN_RAM_BYTES:
        return warn(
            f"{measured}: short for Phi-2",
            "use a smaller model, or a machine or container with more memory",
            measured=measured,
            required=required,
        )
    if free_bytes < _MIN_RAM_BYTES:
        return warn(
            f"{measured}: short for Phi-2",
            "close other programs before training",
            measured=measured,
            required=f"{required} free",
        )
    return ok(measured, measured=measured, required=required)


@check(
    "disk.output",
    "System",
    "Output folder",
    affects="checkpoints and the adapter cannot be saved",
)
def output_folder(probe: Probe) -> Outcome:
    """Check that runs can be written under the output folder."""
    return _writable_with_space(
        probe.output_dir, _MIN_OUTPUT_BYTES, "choose another folder: --output-dir DIR"
    )


@check(
    "disk.cache",
    "System",
    "Hub cache",
    affects="models and data sets of the hub cannot be kept",
)
def hub_cache(probe: Probe) -> Outcome:
    """Check the cache folder of the Hugging Face hub: writable, free space, leftovers."""
    folder = probe.huggingface_home()
    outcome = _writable_with_space(
        folder, _MIN_CACHE_BYTES, "point HF_HOME to a folder with space", "export HF_HOME=/path"
    )
    leftovers = list((folder / "hub").glob("models--*/blobs/*.incomplete"))
    if outcome.status == "ok" and leftovers:
        total = sum(path.stat().st_size for path in leftovers)
        return ok(
            f"{outcome.detail}; {len(leftovers)} unfinished downloads hold {format_bytes(total)}",
            measured=outcome.measured,
            required=outcome.required,
        )
    return outcome


@check(
    "disk.own_cache",
    "System",
    "lorafit's cache",
    affects="`lorafit demo` has to make its tiny model anew each time, or fails",
)
def own_cache(probe: Probe) -> Outcome:
    """Check lorafit's own cache folder."""
    return _writable_with_space(
        cache_folder(),
        GIB // 4,
        "point LORAFIT_CACHE_DIR to a folder with space",
        "export LORAFIT_CACHE_DIR=/path",
    )


def _writable_with_space(folder: Path, required_bytes: int, fix: str, *commands: str) -> Outcome:
    """Write and remove a file in `folder`, or in the nearest folder above it that exists."""
    existing = folder.expanduser().absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return error(f"{existing} is a file, not a folder", fix, *commands)
    required = f"{format_bytes(required_bytes)} free"
    try:
        # Only a folder that exists is written to; a check leaves nothing behind.
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".lorafit-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as failure:
        why = failure.strerror or str(failure)
        return error(f"{existing} cannot be written: {why}", fix, *commands, required=required)
    free_bytes = shutil.disk_usage(existing).free
    measured = f"{format_bytes(free_bytes)} free"
    if free_bytes < required_bytes:
        return warn(
            f"{measured} in {existing}", fix, *commands, measured=measured, required=required
        )
    return ok(f"{folder}, {measured}", measured=measured, required=required)


@check(
    "shm.size",
    "System",
    "Shared memory",
    affects="data loader processes fail with a bus error when /dev/shm is full",
)
def shared_memory(probe: Probe) -> Outcome:
    """Check /dev/shm, which is 64 MB in a plain Docker container."""
    if not Path("/dev/shm").is_dir():  # noqa: S108  # the mount itself is what is checked
        return skip("this system has no /dev/shm")
    free_bytes = shutil.disk_usage("/dev/shm").free  # noqa: S108
    measured = f"{format_bytes(free_bytes)} free"
    if free_bytes < GIB // 2:
        return warn(
            f"{measured} in /dev/shm",
            "give the container more, or keep dataloader_num_workers at 0, the default",
            "docker run --shm-size=1g …",
            measured=measured,
            required="512 MiB",
        )
    return ok(measured, measured=measured, required="512 MiB")
