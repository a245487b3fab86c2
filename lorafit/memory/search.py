"""The fastest plan that fits: micro-batch and checkpointed layers for a given effective batch.

Candidates are ranked by the cost model and screened by the closed form, both instant; the best
ones are then estimated exactly, in order, until one fits.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lorafit.units import format_bytes

_MAX_EXACT = 6
"""Exact estimates before the search gives up: each takes seconds."""
_MAX_REPORTED = 5


@dataclass(frozen=True)
class Candidate:
    """One way to take an optimizer step; accumulation follows from the effective batch."""

    micro_batch: int
    accumulation: int
    checkpointed_layers: int
    """Layers computed again in backward, from the first; 0: no checkpointing."""

    def describe(self, num_layers: int) -> str:
        """Return the candidate as a phrase."""
        layers = self.checkpointed_layers
        part = "no" if layers == 0 else "all" if layers == num_layers else f"{layers}"
        return f"micro-batch {self.micro_batch} x {self.accumulation}, {part} layers checkpointed"


@dataclass(frozen=True)
class Rejected:
    """A candidate that would be faster and was not taken."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True)
class SearchResult:
    """The plan found; `chosen` is None when nothing fits."""

    chosen: Candidate | None
    peak_bytes: int | None
    """Exact estimate of the chosen plan."""
    rejected: tuple[Rejected, ...]
    reason: str


def candidates(
    effective_batch: int, num_devices: int, num_layers: int, max_micro_batch: int = 64
) -> list[Candidate]:
    """Return every split of the effective batch with every number of checkpointed layers."""
    share = effective_batch // num_devices
    divisors = [m for m in range(1, min(share, max_micro_batch) + 1) if share % m == 0]
    return [Candidate(m, share // m, layers) for m in divisors for layers in range(num_layers + 1)]


def find_plan(
    options: list[Candidate],
    *,
    num_layers: int,
    budget_bytes: int,
    cost: Callable[[Candidate], float],
    screen: Callable[[Candidate], int],
    estimate: Callable[[Candidate], int],
) -> SearchResult:
    """Return the cheapest candidate whose exact peak is within the budget.

    Args:
        options: what to choose from.
        num_layers: decoder layers of the model, for the words.
        budget_bytes: bytes that a plan may take.
        cost: modelled seconds of an optimizer step.
        screen: quick estimate of the peak in bytes, a few per cent off.
        estimate: exact peak in bytes, seconds a call.
    """
    # Equal cost: the plan that takes less memory.
    ranked = sorted(options, key=lambda c: (cost(c), screen(c)))
    rejected: list[Rejected] = []
    num_exact = 0
    for candidate in ranked:
        quick = screen(candidate)
        # The closed form may be some per cent off either way: near the budget, ask exactly.
        if quick > budget_bytes * 1.1:
            rejected.append(Rejected(candidate, f"about {format_bytes(quick)}"))
            continue
        peak = estimate(candidate)
        num_exact += 1
        if peak <= budget_bytes:
            reason = (
                f"{candidate.describe(num_layers)} is the fastest of {len(options)} plans that "
                f"fits {format_bytes(budget_bytes)}: it takes {format_bytes(peak)}"
            )
            return SearchResult(candidate, peak, _nearest(rejected), reason)
        rejected.append(Rejected(candidate, f"{format_bytes(peak)}"))
        if num_exact == _MAX_EXACT:
            break
    reason = f"no plan of {len(options)} fits {format_bytes(budget_bytes)}"
    return SearchResult(None, None, _nearest(rejected), reason)


def _nearest(rejected: list[Rejected]) -> tuple[Rejected, ...]:
    """Return the rejected plans closest to the chosen one in speed, one a micro-batch."""
    by_batch: dict[int, Rejected] = {}
    for entry in rejected:
        by_batch[entry.candidate.micro_batch] = entry
    return tuple(by_batch.values())[-_MAX_REPORTED:]
