"""The figures of the README: each stands in the results that it links to."""

import json
import re
from typing import Any

import pytest
from tiny import ROOT

RESULTS = ROOT / "bench" / "results"
README = (ROOT / "README.md").read_text("utf-8")


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


def row_with(text: str) -> str:
    (row,) = (line for line in README.splitlines() if line.startswith("|") and text in line)
    return row


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("figure", ["allocated", "process"])
def test_the_error_of_the_memory_estimate_is_the_measured_one(
    quantization: str, figure: str
) -> None:
    percent = 100 * result("memory_accuracy_t4.json")["summary"][quantization][figure]["mean"]
    shown = re.search(
        r"16 bit: ([\d.]+) % and ([\d.]+) %; NF4: ([\d.]+) % and ([\d.]+) % \(worst ([\d.]+) %\)",
        row_with("published LoRA runs"),
    )
    assert shown is not None
    index = {"none": 0, "nf4": 2}[quantization] + (figure == "process")
    number = shown.groups()[index]
    assert float(number) == pytest.approx(percent, abs=0.5 * 10 ** -len(number.partition(".")[2]))
    worst = 100 * result("memory_accuracy_t4.json")["summary"]["nf4"]["process"]["worst"]
    assert float(shown[5]) == pytest.approx(worst, abs=0.05)


def test_the_kills_are_those_of_the_bench() -> None:
    summary = result("kill_and_resume.json")["summary"]
    ours, theirs = summary["lorafit"], summary["transformers"]
    row = row_with("half of them during a save")
    assert f"killed {ours['kills']} times" in row
    assert ours["kills"] == theirs["kills"]
    assert ours["kills_in_a_save"] == pytest.approx(ours["kills"] / 2, abs=2)
    assert "each resumed to the same bits" in row
    assert ours["resumed_equal"] == ours["kills"]
    assert "transformers Trainer: fewer than half resumed" in row
    assert theirs["kills"] - theirs["resume_failed"] < theirs["kills"] / 2


def test_the_memory_of_a_step_is_that_of_the_layer_guide() -> None:
    guide = (ROOT / "docs" / "PHI2-README.md").read_text("utf-8")
    kept = guide.partition("<!-- kept: generated -->")[2].partition("<!-- end kept -->")[0]
    (line,) = (line for line in kept.splitlines() if line.startswith("| all six"))
    _, stock_kept, lean_kept, stock_peak, lean_peak, _ = (c.strip() for c in line.split("|")[1:-1])
    row = row_with("memory of a step")
    assert f"| {lean_peak}, {lean_kept} a token and layer |" in row
    assert f"transformers + PEFT: {stock_peak}, {stock_kept} |" in row
