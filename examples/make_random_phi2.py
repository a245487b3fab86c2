"""Make a model folder with Phi-2's own configuration, random bfloat16 weights and a tokenizer.

It stands in for the real model where nothing can be downloaded: shapes, memory and speed are those
of Phi-2, the text is noise.

    python examples/make_random_phi2.py FOLDER        # 5.6 GB
    python examples/make_random_phi2.py FOLDER --layers 2
"""

import argparse
from pathlib import Path

import torch
from transformers import PhiConfig, PhiForCausalLM

from lorafit.demo.corpus import documents
from lorafit.demo.pretrain import build_tokenizer

# https://huggingface.co/microsoft/phi-2/blob/main/config.json
PHI2 = {
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.4,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=PHI2["num_hidden_layers"])
    arguments = parser.parse_args()
    tokenizer = build_tokenizer(list(documents(seed=0, count=2000)), vocab_size=1536)
    config = PhiConfig(
        **{**PHI2, "num_hidden_layers": arguments.layers},
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = PhiForCausalLM(config)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(arguments.folder, max_shard_size="2GB")
    tokenizer.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {model.num_parameters():,} parameters in bfloat16")


if __name__ == "__main__":
    main()
