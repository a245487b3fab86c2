"""The fastest plan that fits: micro-batch and checkpointed layers for a given effective batch.

Candidates are ranked by the cost model and screened by the closed form, both instant; the best
ones are then estimated exactly, which takes seconds each. Every exact answer corrects the screen,
and rules out whatever takes more for sure: memory grows with the micro-batch and shrinks with the
number of checkpointed layers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lorafit.units import format_bytes

MAX_EXACT = 4
"""Exact estimates of a search, beside that of the smallest plan: each takes seconds."""
_WORTH_ASKING = 0.01
"""Once a plan fits, another must promise to be faster by this share to be worth the seconds."""


@dataclass(frozen=True)
class Candidate:
    """One way to take an optimizer step; accumulation follows from the effective batch."""

    micro_batch: int
    accumulation: int
    checkpointed_layers: int
    """Layers computed again in backward, from the first; 0: no checkpointing."""

    def describe(self, num_layers: int) -> str:
        """Return the candidate as a phrase."""
        count = self.checkpointed_layers
        part = "no" if count == 0 else "all" if count == num_layers else f"{count} of {num_layers}"
        return f"micro-batch {self.micro_batch} x {self.accumulation}, {part} layers checkpointed"

    def takes_no_less_than(self, other: "Candidate") -> bool:
        """Return whether this plan surely takes at least the memory of `other`."""
        return (
            self.micro_batch >= other.micro_batch
            and self.checkpointed_layers <= other.checkpointed_layers
        )


@dataclass(frozen=True)
class Rejected:
    """A candidate that was not taken, and why, as a phrase such as `takes about 24.1 GiB`."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True)
class SearchResult:
    """The plan found; `chosen` is None when nothing fits."""

    chosen: Candidate | None
    smallest: Candidate
    """The plan that takes the least memory, as the screen says."""
    peak_bytes: int
    """Exact estimate of the chosen plan, or of the smallest where nothing fits."""
    rejected: tuple[Rejected, ...]
    """The best of every other micro-batch, and the next faster plan of the chosen one."""
    num_exact: int
    """Exact estimates that were made."""


def candidates(
    effective_batch: int, num_devices: int, num_layers: int, max_micro_batch: int = 64
) -> list[Candidate]:
    """Return every split of the effective batch with every number of checkpointed layers.

    An effective batch that the devices do not divide has none.
    """
    if effective_batch % num_devices:
        return []
    share = effective_batch // num_devices
    divisors = [m for m in range(1, min(share, max_micro_batch) + 1) if share % m == 0]
    return [Candidate(m, share // m, layers) for m in divisors for layers in range(num_layers + 1)]


class _Search:
    """What is known so far: exact peaks, and how far the screen is off."""

    def __init__(
        self,
        options: Iterable[Candidate],
        budget_bytes: int,
        cost: Callable[[Candidate], float],
        screen: Callable[[Candidate], int],
        estimate: Callable[[Candidate], int],
    ) -> None:
        self.costs = {candidate: cost(candidate) for candidate in options}
        self.quick = {candidate: screen(candidate) for candidate in self.costs}
        # Equal cost: the plan that takes less memory.
        self.ranked = sorted(self.costs, key=lambda c: (self.costs[c], self.quick[c]))
        self.smallest = min(self.ranked, key=lambda c: (self.quick[c], self.costs[c]))
        self.budget_bytes = budget_bytes
        self.estimate = estimate
        self.exact: dict[Candidate, int] = {}
        self.correction = 1.0

    def likely_bytes(self, candidate: Candidate) -> int:
        """Return the exact peak, or the screen's as the last exact answer corrects it."""
        return self.exact.get(candidate, int(self.quick[candidate] * self.correction))

    def ask(self, candidate: Candidate) -> bool:
        """Estimate a candidate exactly; return whether it fits."""
        peak = self.exact[candidate] = self.estimate(candidate)
        self.correction = peak / self.quick[candidate]
        return peak <= self.budget_bytes

    def is_out(self, candidate: Candidate) -> bool:
        """Return whether an exact answer rules a candidate out."""
        return any(
            peak > self.budget_bytes and candidate.takes_no_less_than(known)
            for known, peak in self.exact.items()
        )

    def next_question(self, best: Candidate | None) -> Candidate | None:
        """Return the fastest candidate that likely fits and would beat `best`.

        While nothing fits, the smallest candidate is worth a question whatever the screen says.
        """
        for candidate in self.ranked:
            if best is not None and self.costs[candidate] > self.costs[best] * (1 - _WORTH_ASKING):
                return None
            if (
                candidate not in self.exact
                and not self.is_out(candidate)
                and self.likely_bytes(candidate) <= self.budget_bytes
            ):
                return candidate
        if best is None and self.smallest not in self.exact and not self.is_out(self.smallest):
            return self.smallest
        return None


def find_plan(
    options: Iterable[Candidate],
    *,
    budget_bytes: int,
    cost: Callable[[Candidate], float],
    screen: Callable[[Candidate], int],
    estimate: Callable[[Candidate], int],
) -> SearchResult:
    """Return the cheapest candidate whose exact peak is within the budget.

    Only an exact estimate makes a plan the chosen one, and only the exact estimate of the smallest
    plan makes the answer that none fits.

    Args:
        options: what to choose from, at least one.
        budget_bytes: bytes that a plan may take.
        cost: modelled seconds of an optimizer step.
        screen: quick estimate of the peak in bytes, a few per cent off.
        estimate: exact peak in bytes, seconds a call.
    """
    search = _Search(options, budget_bytes, cost, screen, estimate)
    best: Candidate | None = None
    while len(search.exact) < MAX_EXACT:
        question = search.next_question(best)
        if question is None:
            break
        if search.ask(question):
            best = question
    if best is None and search.smallest not in search.exact and search.ask(search.smallest):
        best = search.smallest
    return SearchResult(
        chosen=best,
        smallest=search.smallest,
        peak_bytes=search.exact[best or search.smallest],
        rejected=_rejected(search, best),
        num_exact=len(search.exact),
    )


def _rejected(search: _Search, best: Candidate | None) -> tuple[Rejected, ...]:
    """Return, for every micro-batch, the most interesting plan that was not taken, and why."""
    found = []
    for micro_batch in sorted({candidate.micro_batch for candidate in search.ranked}):
        rows = [candidate for candidate in search.ranked if candidate.micro_batch == micro_batch]
        if best is not None and micro_batch == best.micro_batch:
            faster = rows[: rows.index(best)]
            rows = faster[-1:]  # the next faster one
        else:
            fitting = [row for row in rows if _fits(search, row)]
            rows = fitting[:1] or [min(rows, key=search.likely_bytes)]
        found += [Rejected(row, _why(search, row, best)) for row in rows]
    return tuple(found)


def _fits(search: _Search, candidate: Candidate) -> bool:
    return not search.is_out(candidate) and search.likely_bytes(candidate) <= search.budget_bytes


def _why(search: _Search, candidate: Candidate, best: Candidate | None) -> str:
    about = "" if candidate in search.exact else "about "
    takes = f"takes {about}{format_bytes(search.likely_bytes(candidate))}"
    if best is None or not _fits(search, candidate):
        return takes
    slower = search.costs[candidate] / search.costs[best] - 1
    return f"{slower:.0%} slower" if slower >= 0.005 else f"no faster, and {takes}"
