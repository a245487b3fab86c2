"""The table of predicted and measured durations."""

import pytest
from duration import RUNS, Run, is_within, markdown

from lorafit.config.names import canonical_name
from lorafit.config.schema import Settings


def measured(basis: str, seconds: float) -> dict[str, object]:
    return {
        "name": f"a run of {seconds:g} s",
        "basis": basis,
        "predicted_seconds": 10.0,
        "low_seconds": 8.0,
        "high_seconds": 12.5,
        "seconds": seconds,
    }


@pytest.mark.parametrize(
    ("seconds", "answer"), [(7.9, False), (8.0, True), (12.5, True), (12.6, False)]
)
def test_a_run_is_in_its_range_up_to_both_ends(seconds: float, answer: bool) -> None:
    assert is_within(measured("measured", seconds)) is answer


def test_the_page_counts_the_runs_outside_of_their_range_by_basis() -> None:
    runs = [measured("arithmetic", 20.0), measured("measured", 9.0), measured("measured", 13.0)]
    page = markdown(
        {
            "measured_at": "2026-01-02T00:00:00+00:00", "device": {"name": "CPU X"}, "threads": 1,
            "rows": 60, "versions": {"torch": "2.13.0"}, "load": 1.0, "cores": 2, "runs": runs,
        }
    )  # fmt: skip
    assert "| a run of 20 s | arithmetic | 10.0 | 8.0 to 12.5 | 20.0 | 2.00 | no |" in page
    assert "| a run of 9 s | measured | 10.0 | 8.0 to 12.5 | 9.0 | 0.90 | yes |" in page
    assert "measured: 1 of 2 runs within their range; took between 0.90 and 1.30" in page
    assert "arithmetic: 0 of 1 runs" in page


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_run_sets_what_lorafit_has(run: Run) -> None:
    names = [word.partition("=")[0] for word in run.settings() if "=" in word]
    assert {canonical_name(name) for name in names} <= set(Settings.model_fields)
