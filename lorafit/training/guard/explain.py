"""What the libraries' errors mean for a run, in words and with something to type."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage

from lorafit.config.batch import BatchPlan
from lorafit.errors import DeviceError, MemoryFitError
from lorafit.text import excerpt
from lorafit.training.guard.oom import is_host_memory, is_out_of_memory
from lorafit.training.planning.run_plan import RunPlan
from lorafit.units import format_bytes

_WORKER_DIED = re.compile(r"DataLoader worker.*(killed by signal|exited unexpectedly)")


@contextlib.contextmanager
def errors_explained(plan: RunPlan) -> Iterator[None]:
    """Context that turns out-of-memory and data loader errors into their own.

    Raises:
        MemoryFitError: device or host memory ran out.
        DeviceError: a data loader process was killed.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as failure:
        if _WORKER_DIED.search(str(failure)):
            raise _worker_died(failure) from failure
        if not is_out_of_memory(failure):
            raise
        raise _out_of_memory(plan, failure) from failure


def _out_of_memory(plan: RunPlan, failure: BaseException) -> MemoryFitError:
    is_host = plan.device.kind == "cpu" or is_host_memory(failure)
    where = "this machine's memory" if is_host else plan.device.name
    advice = "a lower --max-length, --gradient-checkpointing and --quantization nf4 save memory"
    if is_host:
        advice += "; so does closing other programs, or a higher limit (ulimit -v, the container's)"
    first_line = (str(failure) or type(failure).__name__).splitlines()[0]
    return MemoryFitError(
        f"ran out of {where} with micro-batch {plan.batch.per_device_train_batch_size} x "
        f"{plan.settings.max_length} tokens: {excerpt(first_line, 300)}",
        hint=_smaller_batch(plan.batch) + advice,
    )


def _worker_died(failure: BaseException) -> DeviceError:
    shared = Path("/dev/shm")  # noqa: S108  # shared memory itself, nothing is written there
    size = f" (/dev/shm has {format_bytes(disk_usage(shared).total)})" if shared.is_dir() else ""
    return DeviceError(
        f"a data loader process died: {excerpt(str(failure), 200)}",
        hint=f"shared memory may be too small{size}: set dataloader_num_workers: 0, or give the "
        "container more (docker run --shm-size=1g); every checkpoint written so far is "
        "intact",
    )


def _smaller_batch(batch: BatchPlan) -> str:
    """Return the flags of about half the micro-batch that keep the effective batch, if any."""
    share = batch.effective_batch_size // batch.num_devices
    half = batch.per_device_train_batch_size // 2
    smaller = next((rows for rows in range(half, 0, -1) if share % rows == 0), None)
    if smaller is None:
        return ""
    return (
        f"--per-device-train-batch-size {smaller} --gradient-accumulation-steps "
        f"{share // smaller} keeps the same effective batch; "
    )
