"""Runs of grpo and dpo on a tiny model whose logits are wide enough to prefer a token."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_jsonl

REWARD = """\
def has_r(prompts, completions, answer, **fields):
    return [text.count(letter) / max(1, len(text)) for text, letter in zip(completions, answer)]
"""


@pytest.fixture
def reward_file(tmp_path: Path) -> Path:
    """A file with one reward function: the share of the answer's letters that are right."""
    path = tmp_path / "rewards.py"
    path.write_text(REWARD)
    return path


@pytest.fixture
def grpo_arguments(
    tiny_model: Callable[..., Path], tmp_path: Path, reward_file: Path
) -> Callable[..., list[str]]:
    """Return a factory of `lorafit train --method grpo` arguments."""
    rows = [{"prompt": f"the colour of thing {i} is", "answer": "r"} for i in range(8)]
    data = write_jsonl(tmp_path / "prompts.jsonl", rows)

    def make(run_dir: Path, *more: object, **changes: object) -> list[str]:
        settings = {
            "data": data,
            "reward_functions": reward_file,
            "num_generations": 4,
            "max_completion_length": 6,
            **changes,
        }
        return _arguments(tiny_model, run_dir, "grpo", settings, more)

    return make


@pytest.fixture
def dpo_arguments(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Return a factory of `lorafit train --method dpo` arguments."""
    rows = [
        {"prompt": f"the colour of thing {i} is", "chosen": " red", "rejected": " blue and white"}
        for i in range(8)
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)

    def make(run_dir: Path, *more: object, **changes: object) -> list[str]:
        return _arguments(tiny_model, run_dir, "dpo", {"data": data, **changes}, more)

    return make


def _arguments(
    tiny_model: Callable[..., Path],
    run_dir: Path,
    method: str,
    changes: dict[str, object],
    more: tuple[object, ...],
) -> list[str]:
    settings: dict[str, object] = {
        "model": tiny_model(initializer_range=0.4),
        "device": "cpu",
        "max_length": 32,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "save_steps": 1,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        **changes,
    }
    flags = ["--no-torch-compile", "--no-gradient-checkpointing"]
    for name, value in settings.items():
        if value is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return ["train", "--method", method, "--output-dir", str(run_dir), *flags, *map(str, more)]
