"""Recovery from running out of memory: the same step again, in smaller pieces.

The rows of an optimizer step, their order and the divisor of the loss stay what they were, so
that a run that recovers is the run that had begun with the smaller micro-batch.
"""

import gc
import resource
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import psutil
import torch

from lorafit.data.micro_batches import MicroBatchLimits
from lorafit.errors import LorafitError, MemoryFitError
from lorafit.text import excerpt
from lorafit.training.checkpoints.state import RandomState
from lorafit.training.guard.memory_use import memory_in_use
from lorafit.units import format_bytes

T = TypeVar("T")
Activity = Literal["step", "update", "evaluation", "save"]

_MESSAGES = (
    "MPS backend out of memory",
    "can't allocate memory",  # DefaultCPUAllocator
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)

_ELSEWHERE = "another process of this run ran out of memory"


def is_out_of_memory(failure: BaseException) -> bool:
    """Return whether an exception says that device or host memory ran out."""
    if isinstance(failure, LorafitError):
        return isinstance(failure, MemoryFitError)
    if isinstance(failure, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(failure)
    return isinstance(failure, RuntimeError | OSError) and any(part in text for part in _MESSAGES)


def is_host_memory(failure: BaseException) -> bool:
    """Return whether it was the host's memory that ran out, and not the device's."""
    text = str(failure)
    return isinstance(failure, MemoryError) or "allocate memory" in text


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still take on `device`."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device.type == "mps":
        limit = torch.mps.recommended_max_memory()
        return max(0, int(limit - torch.mps.driver_allocated_memory()))
    available = int(psutil.virtual_memory().available)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        available = min(available, max(0, limit - int(psutil.Process().memory_info().vms)))
    return available


@dataclass(frozen=True)
class Shrink:
    """One time that memory ran out, and what was made smaller."""

    step: int
    """The optimizer step that was being computed or applied, or after which was validated or
    saved."""
    activity: Activity
    change: str
    """What became of what, such as `micro-batch 8 -> 4`."""
    error: str
    predicted_bytes: int
    """Peak that the estimate had promised."""
    free_bytes: int
    """What this process could still have taken right after the failure."""
    observed_bytes: int
    """What was in use at the peak before it."""
    room_bytes: int
    """What the process then held and could have taken, together."""
    longest_row: str | None = None
    """The longest row of the step, with its length."""

    @property
    def is_estimator_error(self) -> bool:
        """Whether there was room for all that the estimate asked for, and it was not enough."""
        return self.room_bytes >= self.predicted_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return it for run.json."""
        return {**asdict(self), "is_estimator_error": self.is_estimator_error}

    def sentence(self) -> str:
        """Return it in one line."""
        row = f"; longest row: {self.longest_row}" if self.longest_row else ""
        verdict = (
            "the estimate was too low: please report run.json"
            if self.is_estimator_error
            else "other programs hold what the estimate had counted on"
        )
        return (
            f"out of memory at step {self.step} ({self.activity}): {self.change}; predicted "
            f"{format_bytes(self.predicted_bytes)}, in use {format_bytes(self.observed_bytes)}, "
            f"free {format_bytes(self.free_bytes)}: {verdict}{row}"
        )


class Checkpointing:
    """How many decoder layers are computed again in backward, and how to make it more."""

    def __init__(
        self, count: int = 0, num_layers: int = 0, apply: Callable[[int], None] = lambda count: None
    ) -> None:
        """Begin with `count` of `num_layers` layers; `apply` checkpoints the first so many."""
        self.count = count
        self.num_layers = num_layers
        self._apply = apply

    def set(self, count: int) -> None:
        """Checkpoint the first `count` layers."""
        if count != self.count:
            self._apply(count)
            self.count = count

    def more(self) -> str | None:
        """Checkpoint half of the layers, then all; return what changed, None if all are already."""
        before = self.count
        if before >= self.num_layers:
            return None
        half = -(-self.num_layers // 2)
        self.set(half if before < half else self.num_layers)
        return f"checkpointed layers {before} -> {self.count} of {self.num_layers}"


class MemoryRecovery:
    """Runs what may run out of memory, and makes it smaller until it does not.

    `limits` and `eval_batch_size` only ever shrink; `state` goes into every checkpoint, so that a
    resumed run splits its steps alike.
    """

    def __init__(
        self,
        *,
        limits: MicroBatchLimits,
        eval_batch_size: int,
        device: torch.device,
        checkpointing: Checkpointing | None = None,
        predicted_bytes: int = 0,
        recovers: bool = True,
        on_shrink: Callable[[Shrink], None] = lambda shrink: None,
        any_process: Callable[[bool], bool] = lambda flag: flag,
    ) -> None:
        """Begin with the planned sizes; `recovers=False` lets every failure through.

        `any_process` tells whether a flag is set in any process of the run: a step or a validation
        is repeated in all of them.
        """
        self.limits = limits
        self.eval_batch_size = eval_batch_size
        self.checkpointing = checkpointing or Checkpointing()
        self._device = device
        self._predicted_bytes = predicted_bytes
        self._recovers = recovers
        self._on_shrink = on_shrink
        self._any_process = any_process

    # -- What a checkpoint keeps -----------------------------------------------------------

    @property
    def state(self) -> dict[str, Any]:
        """The sizes as they are now, ready for JSON."""
        return {
            "units": self.limits.units,
            "tokens": self.limits.tokens,
            "eval_batch_size": self.eval_batch_size,
            "num_checkpointed_layers": self.checkpointing.count,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the sizes of a checkpoint, as its run had shrunk them."""
        self.limits = replace(self.limits, units=state["units"], tokens=state["tokens"])
        self.eval_batch_size = state["eval_batch_size"]
        self.checkpointing.set(state["num_checkpointed_layers"])

    # -- Running ---------------------------------------------------------------------------

    def run_step(
        self,
        attempt: Callable[[MicroBatchLimits], torch.Tensor],
        undo: Callable[[], None],
        *,
        step: int,
        lengths: list[int],
        longest_row: Callable[[], str | None] = lambda: None,
    ) -> torch.Tensor:
        """Return the loss of a step, computed within the limits that its memory allows.

        Args:
            attempt: forward and backward of the whole step under given limits.
            undo: takes back what an attempt left, such as gradients.
            step: number of the step, for records.
            lengths: tokens of each unit of the step.
            longest_row: says which row is the longest; asked only on failure.

        Raises:
            MemoryFitError: one row at a time with every layer checkpointed is still too much.
        """
        if not self._recovers:
            return attempt(self.limits)
        random_state = RandomState.capture()
        while True:
            result, error = _try(lambda: attempt(self.limits))
            if not self._any_process(error is not None):
                assert result is not None
                return result
            observed = memory_in_use(self._device).allocated_bytes
            undo()
            error = error or _ELSEWHERE
            change = self._shrink_step(lengths, error)
            self._announce("step", step, change, error, observed, longest_row())
            random_state.restore()

    def run_update(
        self, attempt: Callable[[], object], optimizer: torch.optim.Optimizer, *, step: int
    ) -> None:
        """Apply a step; repeat it with cached memory released, if nothing of it was applied.

        The first update allocates the moments, beside whatever backward has left in the cache.

        Args:
            attempt: calls the optimizer's own step, or that of what wraps it.
            optimizer: whose parameters and state tell what was changed.
            step: number of the step, for records.

        Raises:
            MemoryFitError: the update is half done: neither can it be repeated, nor is it a state
                to save.
        """
        if not self._recovers:
            attempt()
            return
        known = set(optimizer.state)
        versions = {id(tensor): tensor._version for tensor in _changeable(optimizer)}
        _, error = _try(attempt)
        if error is None:
            return
        observed = memory_in_use(self._device).allocated_bytes
        is_torchs = type(optimizer).__module__.startswith("torch.optim.")
        # A tensor's version counts the times that it was changed; new ones are all zero.
        if not is_torchs or any(
            tensor._version != versions.get(id(tensor), 0) for tensor in _changeable(optimizer)
        ):
            raise MemoryFitError(
                f"ran out of memory in the middle of the update of step {step}, which is half done "
                f"and not saved: {error}",
                hint="run the same command again to go on from the last checkpoint; a lower "
                "--per-device-train-batch-size leaves more memory",
            )
        for parameter in [parameter for parameter in optimizer.state if parameter not in known]:
            del optimizer.state[parameter]
        self._announce("update", step, "cached memory is released and the update repeated", error,
                       observed)  # fmt: skip
        try:
            attempt()
        except (RuntimeError, MemoryError) as failure:
            if not is_out_of_memory(failure):
                raise
            raise MemoryFitError(
                f"ran out of memory again in the update of step {step}, with all cached memory "
                f"released: {error}",
                hint="a lower --lora-r or --optim paged_adamw_8bit makes the optimizer's state "
                "smaller",
            ) from None

    def run_evaluation(self, attempt: Callable[[int], T], *, step: int) -> T | None:
        """Return what `attempt(batch_size)` gives; None where even one row at a time fails.

        Every process of the run comes here, and does it again where memory ran out in one.
        """
        if not self._recovers:
            return attempt(self.eval_batch_size)
        while True:
            result, error = _try(lambda: attempt(self.eval_batch_size))
            if not self._any_process(error is not None):
                return result
            error = error or _ELSEWHERE
            observed = memory_in_use(self._device).allocated_bytes
            before = self.eval_batch_size
            self.eval_batch_size = max(1, before // 2)
            change = f"evaluation batch {before} -> {self.eval_batch_size}"
            if before == 1:
                change = "one row is too much, so this validation is left out"
            self._announce("evaluation", step, change, error, observed)
            if before == 1:
                return None

    def run_save(self, attempt: Callable[[], T], *, step: int) -> T:
        """Return what `attempt` gives; it has a second try with all cached memory released."""
        result, error = _try(attempt) if self._recovers else (attempt(), None)
        if error is None:
            assert result is not None
            return result
        observed = memory_in_use(self._device).allocated_bytes
        self._announce("save", step, "cached memory is released and the save repeated", error,
                       observed)  # fmt: skip
        return attempt()

    def _shrink_step(self, lengths: list[int], error: str) -> str:
        limits = self.limits
        if limits.tokens is not None and limits.tokens > max(lengths):
            self.limits = replace(limits, tokens=max(limits.tokens // 2, *lengths))
            return f"micro-batch {limits.tokens} -> {self.limits.tokens} tokens"
        if limits.tokens is None and min(limits.units, len(lengths)) > 1:
            units = limits.units // 2
            while units >= len(lengths):  # still this step in one piece
                units //= 2
            self.limits = replace(limits, units=units)
            return f"micro-batch {limits.units} -> {units}"
        change = self.checkpointing.more()
        if change is None:
            raise MemoryFitError(
                f"ran out of memory with one row of {max(lengths)} tokens at a time and every "
                f"layer checkpointed: {error}",
                hint="a lower --max-length or --quantization nf4 saves memory",
            )
        return change

    def _announce(
        self,
        activity: Activity,
        step: int,
        change: str,
        error: str,
        observed: int,
        longest_row: str | None = None,
    ) -> None:
        release_memory(self._device)
        free = free_memory(self._device)
        shrink = Shrink(
            step=step,
            activity=activity,
            change=change,
            error=error,
            predicted_bytes=self._predicted_bytes,
            free_bytes=free,
            observed_bytes=observed,
            room_bytes=free + _held_memory(self._device),
            longest_row=longest_row,
        )
        self._on_shrink(shrink)


def _changeable(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Yield the parameters of an optimizer and the tensors of their state."""
    for group in optimizer.param_groups:
        yield from group["params"]
    for entries in optimizer.state.values():
        yield from (value for value in entries.values() if isinstance(value, torch.Tensor))


def _try(attempt: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return the result, or the first line of an out-of-memory error.

    The error itself is not kept: its frames hold the tensors that have to be freed.
    """
    try:
        return attempt(), None
    except (RuntimeError, MemoryError, OSError) as failure:
        if not is_out_of_memory(failure):
            raise
        return None, excerpt((str(failure) or type(failure).__name__).splitlines()[0], 200)


def release_memory(device: torch.device) -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _held_memory(device: torch.device) -> int:
    """Return the bytes that this process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(psutil.Process().memory_info().rss)
