"""Write the workload's Phi model in LitGPT's own format, with its own conversion; not timed.

python convert_for_litgpt.py MODEL OUTPUT_DIR
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from litgpt.config import Config  # type: ignore[import-not-found]  # own environment
from litgpt.scripts.convert_hf_checkpoint import (  # type: ignore[import-not-found]
    copy_weights_phi,
)
from litgpt.utils import save_config  # type: ignore[import-not-found]
from safetensors.torch import load_file


def main() -> None:
    """Convert weights and configuration, and copy the tokenizer."""
    source, target = map(Path, sys.argv[1:])
    shape = json.loads((source / "config.json").read_text())
    # `phi-2` brings what the architectures share: parallel residual, tanh GELU, biased head.
    config = Config.from_name(
        "phi-2",
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_embd=shape["hidden_size"],
        n_layer=shape["num_hidden_layers"],
        n_head=shape["num_attention_heads"],
        head_size=shape["hidden_size"] // shape["num_attention_heads"],
        n_query_groups=shape["num_attention_heads"],
        intermediate_size=shape["intermediate_size"],
    )
    weights: dict[str, torch.Tensor] = {}
    copy_weights_phi(config, {}, weights, load_file(source / "model.safetensors"))
    target.mkdir(parents=True)
    torch.save(weights, target / "lit_model.pth")
    save_config(config, target)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target / name)


if __name__ == "__main__":
    main()
