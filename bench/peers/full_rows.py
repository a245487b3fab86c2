"""Full-size models with random weights, and rows that fill them: the work for a GPU.

python -m peers.full_rows FOLDER MODEL DEVICE ROWS TOKENS
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from peers.workload import SEED, VOCABULARY, write_tokenizer

PROMPT_TOKENS = 8
"""Nearly all of a row is learnt: the loss over labels only gains nothing from these rows."""

MODELS = {"phi-2": "microsoft/phi-2", "mistral-7b": "mistralai/Mistral-7B-v0.1", "tiny": "tiny"}

_TINY: dict[str, Any] = {
    "model_type": "phi",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "partial_rotary_factor": 0.5,
    "max_position_embeddings": 2048,
}


def model_config(model: str) -> Any:
    """Return transformers' configuration of a model, with the tokens of the made tokenizer."""
    from lorafit.memory.estimate import parse_config
    from lorafit.model.architectures import bundled_config

    values = _TINY if model == "tiny" else bundled_config(MODELS[model])
    assert values is not None, f"{model} is bundled"
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return parse_config({**values, **special}, model)


def write_model(folder: Path, model: str, device: str) -> None:
    """Write random bf16 weights, made on the device, with a tokenizer beside them."""
    import torch
    from transformers import AutoModelForCausalLM

    if (folder / "tokenizer.json").is_file():
        return
    torch.manual_seed(SEED)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(model_config(model), dtype=torch.bfloat16)
    made.save_pretrained(folder)
    write_tokenizer(folder)


def write_rows(path: Path, num_rows: int, num_tokens: int) -> None:
    """Write rows of exactly `num_tokens` tokens, the end token included."""
    chance = random.Random(SEED)
    with path.open("w") as stream:
        for _ in range(num_rows):
            words = [f"w{chance.randrange(3, VOCABULARY)}" for _ in range(num_tokens - 1)]
            prompt, completion = words[:PROMPT_TOKENS], words[PROMPT_TOKENS:]
            row = {"prompt": " ".join(prompt), "completion": " " + " ".join(completion)}
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
