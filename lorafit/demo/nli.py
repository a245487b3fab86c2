"""Problems of natural-language inference with a chain of thought, made from rules.

A problem is a premise, a hypothesis, a short reasoning and a label. Seven families of rules make
them (see `rules`): quality, kind, quantity, location, action, negation and order. Each rule makes
a hypothesis first and then one premise for each label, so that every hypothesis occurs once with
each of the three labels: nothing can be learnt from the hypothesis alone, and the labels are
balanced.

The reasoning restates premise and hypothesis in one common form, compares them part by part up to
the first part that decides, and concludes. Test problems use names and nouns that occur in no
other split (see `vocabulary`). Everything is drawn from `random.Random(seed)`: the same seed gives
the same bytes.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from lorafit.demo.problem import LABELS, Problem
from lorafit.demo.rules import FAMILIES
from lorafit.demo.vocabulary import HELD_OUT, TRAINING, Words

SEED = 17
HYPOTHESES = {"train": 700, "validation": 40, "test": 63}
"""Hypotheses a split; each makes three problems."""
DATA_FOLDER = Path(__file__).parent / "data"


def generate(seed: int = SEED) -> dict[str, list[Problem]]:
    """Return the problems of each split; no premise and hypothesis pair occurs twice."""
    rng = random.Random(seed)
    seen: set[tuple[str, str]] = set()
    splits = {}
    for split, num_hypotheses in HYPOTHESES.items():
        words = HELD_OUT if split == "test" else TRAINING
        splits[split] = _draw(rng, words, num_hypotheses, seen)
    return splits


def _draw(
    rng: random.Random, words: Words, num_hypotheses: int, seen: set[tuple[str, str]]
) -> list[Problem]:
    problems: list[Problem] = []
    while len(problems) < num_hypotheses * len(LABELS):
        family = FAMILIES[len(problems) // len(LABELS) % len(FAMILIES)]
        rows = family(rng, words).problems()
        pairs = {(row.premise, row.hypothesis) for row in rows}
        if len(pairs) == len(rows) and not pairs & seen:
            seen |= pairs
            problems += rows
    rng.shuffle(problems)
    return problems


def write_data(folder: Path = DATA_FOLDER, seed: int = SEED) -> list[Path]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl` into `folder`; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for split, problems in generate(seed).items():
        path = folder / f"{split}.jsonl"
        path.write_bytes(_to_jsonl(problems).encode())
        paths.append(path)
    return paths


def _to_jsonl(problems: Iterable[Problem]) -> str:
    return "".join(json.dumps(asdict(problem)) + "\n" for problem in problems)
