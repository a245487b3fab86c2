"""Memory over a run, from loading to the end of the second step, and a drawing of it.

The samples come from the same trace and the same replica of the allocator as the estimate.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lorafit.memory.allocator import Block, CachingAllocator
from lorafit.memory.events import EMPTY_CACHE, Category, Phase, Trace
from lorafit.units import format_bytes

_NUM_SAMPLES = 800
_UPDATE = (Phase.CLIP, Phase.OPTIMIZER, Phase.ZERO_GRAD)

# What comes and goes within a step; the rest is there all along and makes no peak.
_PASSING = {
    Category.ACTIVATION: "activations",
    Category.LOGITS: "logits and loss",
    Category.WORKSPACE: "kernels' scratch",
    Category.OPTIMIZER: "the optimizer's",
}


@dataclass(frozen=True)
class Span:
    """A stretch of the run, such as one backward pass."""

    name: str
    """`load`, `forward`, `backward` or `update`."""
    step: int
    """The optimizer step, from 1; 0 while the model is loaded."""
    start: int
    """Its first event."""
    end: int
    """The event after its last."""


@dataclass(frozen=True)
class Timeline:
    """What is allocated, by category, at moments of a run.

    Moments are counted in events, each the birth or death of a storage: a trace has no clock.
    Each sample is the fullest moment of an equal share of all events, so that no peak is lost.
    """

    positions: tuple[int, ...]
    """The event after which each sample is taken, rising."""
    allocated_bytes: dict[Category, tuple[int, ...]]
    reserved_bytes: tuple[int, ...]
    spans: tuple[Span, ...]
    num_events: int
    peak: int
    """Index of the sample at which most is allocated."""

    @property
    def peak_bytes(self) -> int:
        """The most that is ever allocated."""
        return sum(values[self.peak] for values in self.allocated_bytes.values())

    def span_of(self, event: int) -> Span:
        """Return the stretch of the run that an event belongs to."""
        return next(span for span in self.spans if span.start <= event < span.end)

    def name_of_peak(self) -> str:
        """Return when most is allocated, and what most of the passing part is, as a phrase."""
        span = self.span_of(self.positions[self.peak])
        what = span.name if span.name == "update" else f"{span.name} pass"
        when = f"{what} of step {span.step}" if span.step else "loading phase"
        largest = max(_PASSING, key=lambda category: self.allocated_bytes[category][self.peak])
        size = format_bytes(self.allocated_bytes[largest][self.peak])
        return f"in the {when}, {size} of it {_PASSING[largest]}"


def build_timeline(
    trace: Trace, allocator: CachingAllocator, num_samples: int = _NUM_SAMPLES
) -> Timeline:
    """Return the memory of a traced run, sampled at most `num_samples` times.

    Args:
        trace: the run.
        allocator: new, and without a capacity: a run that ends early has no peak.
        num_samples: shares into which the events are cut.
    """
    num_events = len(trace.events)
    width = max(1, -(-num_events // num_samples))
    positions: list[int] = []
    totals: list[dict[Category, int]] = []
    reserved: list[int] = []
    fullest = -1
    for event, by_category in _states(trace, allocator):
        if event // width == len(positions):
            positions.append(event)
            totals.append(dict(by_category))
            reserved.append(allocator.reserved_bytes)
            fullest = allocator.allocated_bytes
        elif allocator.allocated_bytes > fullest:
            positions[-1], totals[-1] = event, dict(by_category)
            reserved[-1] = allocator.reserved_bytes
            fullest = allocator.allocated_bytes
    sums = [sum(total.values()) for total in totals]
    return Timeline(
        tuple(positions),
        {category: tuple(total[category] for total in totals) for category in Category},
        tuple(reserved),
        tuple(_spans(trace)),
        num_events,
        sums.index(max(sums)),
    )


def _states(trace: Trace, allocator: CachingAllocator) -> Iterator[tuple[int, dict[Category, int]]]:
    """Yield each event's index and the bytes allocated by category after it."""
    blocks: list[Block | None] = [None] * len(trace.sizes)
    by_category = dict.fromkeys(Category, 0)
    for index, event in enumerate(trace.events):
        category = Category(trace.categories[abs(event)])
        if event == EMPTY_CACHE:
            allocator.release_cached()
        elif event > 0:
            stream = int(event in trace.gathered)
            block = blocks[event] = allocator.allocate(trace.sizes[event], stream)
            by_category[category] += 0 if block is None else block.size
        else:
            block = blocks[-event]
            by_category[category] -= 0 if block is None else block.size
            allocator.free(block)
        yield index, by_category


def _spans(trace: Trace) -> list[Span]:
    """Return the stretches of the run; empty ones are left out, the parts of an update are one."""
    ends = [start for start, _ in trace.phases[1:]] + [len(trace.events)]
    spans: list[Span] = []
    step = 0
    for (start, phase), end in zip(trace.phases, ends, strict=True):
        if start == end:
            continue
        previous = spans[-1] if spans else None
        if phase is Phase.FORWARD and (previous is None or previous.name in ("load", "update")):
            step += 1
        name = "update" if phase in _UPDATE else phase.name.lower()
        if name == "update" and previous is not None and previous.name == "forward":
            # What the last backward pass leaves behind goes before the update.
            spans[-1] = Span(name, step, previous.start, end)
        elif previous is not None and previous.name == name and name != "forward":
            spans[-1] = Span(name, step, previous.start, end)
        else:
            spans.append(Span(name, step, start, end))
    return spans
