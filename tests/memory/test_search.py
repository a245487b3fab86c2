from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafit.memory.search import MAX_EXACT, Candidate, SearchResult, candidates, find_plan
from lorafit.units import GIB

NUM_LAYERS = 4


def cost(candidate: Candidate) -> float:
    """Passes cost 1 and a tenth of a pass each; a checkpointed layer a tenth more."""
    rows = candidate.micro_batch * candidate.accumulation
    return rows * (1 + 0.1 * candidate.checkpointed_layers) + 0.1 * candidate.accumulation


def peak(candidate: Candidate) -> int:
    """6 GiB of weights, and a GiB a row and layer that is not checkpointed, half a GiB a row."""
    plain = NUM_LAYERS - candidate.checkpointed_layers
    return 6 * GIB + candidate.micro_batch * (plain * GIB + GIB // 2)


def search(
    budget_gib: float,
    *,
    screen: Callable[[Candidate], int] = peak,
    effective_batch: int = 8,
    asked: list[Candidate] | None = None,
) -> SearchResult:
    def estimate(candidate: Candidate) -> int:
        if asked is not None:
            asked.append(candidate)
        return peak(candidate)

    return find_plan(
        candidates(effective_batch, 1, NUM_LAYERS),
        budget_bytes=int(budget_gib * GIB),
        cost=cost,
        screen=screen,
        estimate=estimate,
    )


def fastest(budget_gib: float, effective_batch: int = 8) -> Candidate | None:
    options = candidates(effective_batch, 1, NUM_LAYERS)
    fitting = [option for option in options if peak(option) <= int(budget_gib * GIB)]
    return min(fitting, key=lambda c: (cost(c), peak(c)), default=None)


@pytest.mark.parametrize(
    ("effective", "devices", "micro_batches"),
    [(8, 1, [1, 2, 4, 8]), (12, 2, [1, 2, 3, 6]), (7, 1, [1, 7]), (9, 2, []), (128, 1, 7)],
)
def test_candidates_are_the_divisors_with_every_number_of_layers(
    effective: int, devices: int, micro_batches: list[int] | int
) -> None:
    found = candidates(effective, devices, NUM_LAYERS)
    sizes = sorted({candidate.micro_batch for candidate in found})
    if isinstance(micro_batches, int):
        assert sizes[-1] == 64
        assert len(sizes) == micro_batches
    else:
        assert sizes == micro_batches
    assert len(found) == len(sizes) * (NUM_LAYERS + 1)
    assert all(c.micro_batch * c.accumulation * devices == effective for c in found)


@pytest.mark.parametrize(
    ("layers", "words"),
    [(0, "no layers"), (3, "3 of 4 layers"), (4, "all layers")],
)
def test_candidate_is_described_in_words(layers: int, words: str) -> None:
    text = Candidate(8, 4, layers).describe(NUM_LAYERS)
    assert text == f"micro-batch 8 x 4, {words} checkpointed"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        # Everything fits: 6 + 8 x 4.5 = 42 GiB.
        (43, Candidate(8, 1, 0)),
        # Micro-batch 4 without checkpoints takes 24 GiB and costs 8.2; 8 with one of four layers
        # 34 GiB and 8.9.
        (35, Candidate(4, 2, 0)),
        (20, Candidate(2, 4, 0)),
        # Micro-batch 1: 10.5 GiB without checkpoints; 2 with three of four takes 9 GiB.
        (11, Candidate(1, 8, 0)),
        (6.6, Candidate(1, 8, 4)),
    ],
)
def test_fastest_plan_within_the_budget_is_found(budget: float, expected: Candidate) -> None:
    result = search(budget)
    assert result.chosen == expected == fastest(budget)
    assert result.peak_bytes == peak(expected)


def test_nothing_fits_is_said_after_an_exact_answer_about_the_smallest() -> None:
    asked: list[Candidate] = []
    result = search(6.4, asked=asked)
    assert result.chosen is None
    assert asked == [result.smallest] == [Candidate(1, 8, 4)]
    assert result.peak_bytes == peak(result.smallest)


def test_screen_that_sees_too_much_does_not_hide_a_plan_that_fits() -> None:
    result = search(6.6, screen=lambda candidate: int(1.08 * peak(candidate)))
    assert result.chosen == Candidate(1, 8, 4)


@pytest.mark.parametrize("bias", [0.93, 1.0, 1.07])
@given(budget=st.floats(6.5, 45))
def test_biased_screen_is_corrected_with_few_questions(bias: float, budget: float) -> None:
    asked: list[Candidate] = []
    result = search(budget, screen=lambda c: int(bias * peak(c)), asked=asked)
    best = fastest(budget)
    assert best is not None
    assert result.chosen is not None
    assert result.peak_bytes <= int(budget * GIB)
    assert len(asked) == len(set(asked)) == result.num_exact <= MAX_EXACT + 1
    # A hundredth is not worth a question, and a screen that is off may cost another few.
    assert cost(result.chosen) <= cost(best) * 1.15


def test_equal_cost_prefers_less_memory() -> None:
    result = find_plan(
        [Candidate(4, 1, 0), Candidate(1, 4, 0), Candidate(2, 2, 0)],
        budget_bytes=100 * GIB,
        cost=lambda candidate: 1.0,
        screen=peak,
        estimate=peak,
    )
    assert result.chosen == Candidate(1, 4, 0)


def test_rejected_plans_say_what_they_take_or_how_much_slower_they_are() -> None:
    result = search(20)
    reasons = {entry.candidate.micro_batch: entry for entry in result.rejected}
    assert result.chosen == Candidate(2, 4, 0)
    assert reasons[1].candidate == Candidate(1, 8, 0)
    assert reasons[1].reason == "5% slower"  # 8.8 / 8.4
    assert reasons[4].candidate == Candidate(4, 2, 1)
    assert reasons[4].reason == "7% slower"  # 9.0 / 8.4, 20 GiB
    assert reasons[8].candidate == Candidate(8, 1, 3)
    assert 2 not in reasons  # nothing is faster at the chosen micro-batch


def test_next_faster_plan_of_the_chosen_micro_batch_is_shown_with_what_it_takes() -> None:
    result = search(9.6)
    assert result.chosen == Candidate(1, 8, 1)
    (faster,) = (entry for entry in result.rejected if entry.candidate.micro_batch == 1)
    assert faster.candidate == Candidate(1, 8, 0)
    assert faster.reason in ("takes 10.5 GiB", "takes about 10.5 GiB")
