"""Data loader processes that do not outlive the one whose rows they fetch."""

from collections.abc import Callable
from functools import partial
from typing import Any

from lorafit.hardware.processes import end_with_parent


def with_ending_workers(loader: Any) -> Any:
    """Return a data loader whose processes end with this one, however it ends.

    torch's own watch looks at the process that forked them, which a fork server outlives.
    """
    # accelerate wraps the loader that starts them.
    inner = getattr(loader, "base_dataloader", loader)
    inner.worker_init_fn = partial(_start_worker, inner.worker_init_fn)
    return loader


def _start_worker(begin: Callable[[int], object] | None, number: int) -> None:
    end_with_parent()
    if begin is not None:
        begin(number)
