"""Every example runs: a few steps on a tiny model, in this process."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import ROOT

EXAMPLES = ROOT / "examples"
# What each leaves in its folder.
RESULTS = {
    "quick_start": "first/adapter/adapter_model.safetensors",
    "instruction_tuning": "instructions/report.html",
    "nli_with_reasoning": "answers.jsonl",
    "classification_with_f1": "classes/adapter/adapter_model.safetensors",
    "chat": "chat/adapter/adapter_model.safetensors",
    "qlora_tiny": "merged/model.safetensors",
    "resume_after_a_kill": "killed/adapter/adapter_model.safetensors",
    "from_python": "python/adapter/adapter_model.safetensors",
    "two_processes": "shared/adapter/adapter_model.safetensors",
}
# Saving is what a kill waits for: with too few steps the run would be over before it.
STEPS = {"resume_after_a_kill": "30"}


@pytest.fixture
def run_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Callable[..., Path]
) -> Iterator[Callable[[str], Path]]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(name: str) -> Path:
        model = tiny_model(max_position_embeddings=512)
        given = ["--folder", tmp_path, "--model", model, "--steps", STEPS.get(name, "4")]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, given)])
        monkeypatch.setattr(sys, "stdin", sys.stdin)
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return tmp_path

    yield run
    sys.modules.pop("common", None)


def test_every_example_is_tested() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts - {"common", "make_nli_data", "make_random_phi2"} == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_an_example_runs(name: str, run_example: Callable[[str], Path]) -> None:
    assert (run_example(name) / RESULTS[name]).stat().st_size > 0
