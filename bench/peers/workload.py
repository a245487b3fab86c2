"""The work that every project is given: a random Phi model, its tokenizer, and generated rows.

    python -m peers.workload FOLDER SIZE ROWS

writes it. The same arguments give the same bytes with the same versions of the libraries.
"""

import itertools
import json
import math
import random
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 42
VOCABULARY = 8192
MAX_LENGTH = 512
MICRO_BATCH = 4
ACCUMULATION = 4
LORA_R = 8
LORA_ALPHA = 16
LEARNING_RATE = 2e-4
TARGETS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")

# Head size 80 and a rotary share of 0.4, as Phi-2 has.
SHAPES: dict[str, dict[str, int]] = {
    "10m": {"hidden_size": 320, "num_hidden_layers": 4, "num_attention_heads": 4},
    "60m": {"hidden_size": 640, "num_hidden_layers": 10, "num_attention_heads": 8},
}

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"

# Lengths of rows are log-normal, as those of instruction data; they are the distribution's own
# quantiles, so that few rows have the same mean as many.
_MEDIAN_LENGTH, _SIGMA, _SHORTEST, _LONGEST = 59.0, 0.96, 8, 510
_COMPLETION_SHARE = 0.56


@dataclass(frozen=True)
class Workload:
    """Where the model and the data are, in the forms that the projects read."""

    folder: Path
    size: str

    @property
    def model(self) -> Path:
        """The model's folder, with its tokenizer, as transformers reads it."""
        return self.folder / "model"

    @property
    def prompts(self) -> Path:
        """Rows of `prompt` and `completion`, JSON lines."""
        return self.folder / "prompts.jsonl"

    @property
    def instructions(self) -> Path:
        """A folder with the same rows as `instruction`, `input` and `output`."""
        return self.folder / "instructions"

    @property
    def messages(self) -> Path:
        """The same rows as conversations of two turns, JSON lines."""
        return self.folder / "messages.jsonl"

    def facts(self) -> dict[str, Any]:
        """Return what the results say of the work."""
        facts: dict[str, Any] = json.loads((self.folder / "facts.json").read_text())
        return facts


def row_lengths(num_rows: int) -> list[int]:
    """Return the tokens of each row, the end token included, in random order."""
    normal = statistics.NormalDist()
    quantiles = [(index + 0.5) / num_rows for index in range(num_rows)]
    lengths = [_MEDIAN_LENGTH * math.exp(_SIGMA * normal.inv_cdf(q)) for q in quantiles]
    random.Random(SEED).shuffle(lengths)
    return [min(_LONGEST, max(_SHORTEST, round(length))) for length in lengths]


def make_rows(num_rows: int) -> list[dict[str, str]]:
    """Return rows of words that are one token each; the end token is left to the trainer."""
    chance = random.Random(SEED + 1)
    first = len((PAD, END, UNKNOWN))
    words = [f"w{index}" for index in range(first, VOCABULARY)]
    # Zipf's law with the exponent of natural language.
    cumulated = list(itertools.accumulate(1 / rank**1.1 for rank in range(1, len(words) + 1)))
    rows = []
    for length in row_lengths(num_rows):
        num_completion = min(length - 2, max(2, round(length * _COMPLETION_SHARE)))
        text = chance.choices(words, cum_weights=cumulated, k=length - 1)
        prompt, completion = text[: length - num_completion], text[length - num_completion :]
        rows.append({"prompt": " ".join(prompt), "completion": " " + " ".join(completion)})
    return rows


def row_facts(lengths: list[int]) -> dict[str, Any]:
    """Return the distribution of the rows' lengths in tokens."""
    ordered = sorted(lengths)
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "mean": statistics.fmean(lengths),
        "median": statistics.median(lengths),
        "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
        "max": ordered[-1],
    }


def write_workload(folder: Path, size: str, num_rows: int) -> None:
    """Write model, tokenizer and rows into `folder`; `facts.json`, last, says that it is whole."""
    workload = Workload(folder, size)
    workload.instructions.mkdir(parents=True, exist_ok=True)
    rows = make_rows(num_rows)
    _write_lines(workload.prompts, rows)
    turns = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]
    _write_lines(workload.messages, turns)
    instructions = [
        {"instruction": row["prompt"], "input": "", "output": row["completion"]} for row in rows
    ]
    for name, part in (("train", instructions), ("val", instructions[:4])):
        (workload.instructions / f"{name}.json").write_text(json.dumps(part))
    num_parameters = _write_model(workload.model, size)
    facts = {"size": size, "num_parameters": num_parameters, **row_facts(row_lengths(num_rows))}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_model(folder: Path, size: str) -> int:
    import torch
    from transformers import AutoModelForCausalLM, PhiConfig

    shape = SHAPES[size]
    config = PhiConfig(
        **shape,
        vocab_size=VOCABULARY,
        intermediate_size=4 * shape["hidden_size"],
        num_key_value_heads=shape["num_attention_heads"],
        partial_rotary_factor=0.4,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return int(model.num_parameters())


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token a word; id 0 pads, so that padding can be counted."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = (PAD, END, UNKNOWN)
    names = (*special, *(f"w{index}" for index in range(len(special), VOCABULARY)))
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    write_workload(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
