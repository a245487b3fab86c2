"""What the systems of the documents are tried with: rows of NLI with reasoning, and tiny models."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_jsonl

DATA = Path(__file__).parent / "data"


_THINGS = ("cat", "dog", "owl", "hen", "fox")


@pytest.fixture(scope="session")
def nli_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five short rows of premise, hypothesis, reasoning and label, and plain prompts of them."""
    rows = [
        {
            "premise": f"A {thing}.",
            "hypothesis": f"No {thing}.",
            "reasoning": "One is not none.",
            "label": "contradiction",
            "prompt": f"A {thing}, or no {thing}?",
            "completion": " A.",
        }
        for thing in _THINGS
    ]
    return write_jsonl(tmp_path_factory.mktemp("nli") / "rows.jsonl", rows)


# The same small adapter and passes for all, so that one memory estimate serves many presets.
_ALIKE = (
    *("--lora-r", "4", "--lora-alpha", "8", "--batch-size", "1", "--quantization", "none"),
    *("--kernels", "stock"),
)


@pytest.fixture
def system_arguments(tiny_model: Callable[..., Path], nli_rows: Path) -> Callable[..., list[str]]:
    """Return a function of a preset: the arguments with which it trains two steps in a second."""

    def make(preset: str, *, alike: bool = True) -> list[str]:
        family = preset.partition("/")[0]
        model = tiny_model("gemma3" if family == "gemma3" else "mistral")
        return [
            *("--preset", preset, "--model", str(model), "--data", str(nli_rows)),
            *("--device", "cpu", "--max-length", "128", "--max-steps", "2", "--warmup-steps", "1"),
            *("--save-steps", "2", "--eval-steps", "2", "--logging-steps", "1"),
            # CPUs emulate bfloat16, some of them a hundred times slower than float32.
            *("--compute-dtype", "float32"),
            *(_ALIKE if alike else ()),
        ]

    return make
