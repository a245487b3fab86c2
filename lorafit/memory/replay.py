"""Feeding a trace through the replica of the allocator."""

from dataclasses import dataclass

from lorafit.memory.allocator import (
    AllocatorOutOfMemoryError,
    AllocatorStats,
    Block,
    CachingAllocator,
)
from lorafit.memory.events import EMPTY_CACHE, Category, Phase, Trace


@dataclass(frozen=True)
class Replay:
    """What the allocator would report for a traced run."""

    stats: AllocatorStats
    bytes_at_peak: dict[Category, int]
    """Allocated bytes by category when most is allocated; they add up to the peak."""
    phase: Phase
    """The phase in which most is allocated."""
    peak_event: int
    """Index of the event at which most is allocated."""
    out_of_memory: AllocatorOutOfMemoryError | None
    """Where the run ended, if its capacity was too small."""


def replay(trace: Trace, allocator: CachingAllocator) -> Replay:
    """Run every birth and death of `trace` through `allocator`."""
    blocks: list[Block | None] = [None] * len(trace.sizes)
    granted = [0] * len(trace.sizes)  # a block may be larger than what it was asked for
    peak, peak_event = -1, 0
    failure = None
    sizes = trace.sizes
    for index, event in enumerate(trace.events):
        if event < 0:
            allocator.free(blocks[-event])
            continue
        if event == EMPTY_CACHE:
            allocator.release_cached()
            continue
        try:
            stream = int(event in trace.gathered)
            block = blocks[event] = allocator.allocate(sizes[event], stream)
        except AllocatorOutOfMemoryError as problem:
            failure = problem
            break
        granted[event] = 0 if block is None else block.size
        if allocator.allocated_bytes > peak:
            peak, peak_event = allocator.allocated_bytes, index
    return Replay(
        allocator.stats(),
        _bytes_by_category(trace, granted, peak_event),
        _phase_at(trace, peak_event),
        peak_event,
        failure,
    )


def _bytes_by_category(trace: Trace, granted: list[int], last_event: int) -> dict[Category, int]:
    """Return the bytes of blocks in use after `last_event`."""
    totals = dict.fromkeys(Category, 0)
    for event in trace.events[: last_event + 1]:
        if event != EMPTY_CACHE:
            block_bytes = granted[abs(event)]
            category = Category(trace.categories[abs(event)])
            totals[category] += block_bytes if event > 0 else -block_bytes
    return totals


def _phase_at(trace: Trace, event: int) -> Phase:
    current = Phase.LOAD
    for start, phase in trace.phases:
        if start > event:
            break
        current = phase
    return current
