"""A folder in which the commands of the documents run offline: a tiny model, data, no network."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PhiConfig, PhiForCausalLM

from lorafit.demo.corpus import documents
from lorafit.demo.nli import DATA_FOLDER
from lorafit.demo.pretrain import build_tokenizer
from lorafit.model.libraries import prepare_libraries

NUM_ROWS = 40


def make_model(folder: Path) -> Path:
    """Write a random Phi of two layers and its tokenizer; the same call gives the same bytes."""
    prepare_libraries()
    tokenizer = build_tokenizer(list(documents(seed=0, count=400)), vocab_size=1024)
    end = tokenizer.eos_token_id
    config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=end,
        eos_token_id=end,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        PhiForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def nli_rows(count: int, name: str = "train") -> Iterator[dict[str, str]]:
    """Yield rows of the bundled data set."""
    with (DATA_FOLDER / f"{name}.jsonl").open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            yield json.loads(line)


def make_data(folder: Path) -> None:
    """Write the data files that the documents name."""
    prompts = [
        {
            "prompt": f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}\nAnswer:",
            "completion": f" {row['label']}",
            "label": row["label"],
        }
        for row in nli_rows(NUM_ROWS)
    ]
    chats = [
        {
            "messages": [
                {"role": "user", "content": row["hypothesis"]},
                {"role": "assistant", "content": row["reasoning"]},
            ]
        }
        for row in nli_rows(NUM_ROWS)
    ]
    files: dict[str, list[Any]] = {
        "my": prompts,
        "test": prompts[:4],
        "nli": list(nli_rows(NUM_ROWS)),
        "chat": chats,
    }
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    columns = [f"{row['hypothesis']},{row['label']}" for row in nli_rows(NUM_ROWS)]
    (folder / "faq.csv").write_text("\n".join(["question,answer", *columns]) + "\n", "utf-8")


def environment(command: str, model: Path, cache: Path) -> dict[str, str]:
    """Return variables with which a command uses the tiny model, and trains a few steps of it.

    Variables outrank presets and files; flags outrank them.
    """
    values = {
        "HF_HUB_OFFLINE": "1",
        "LORAFIT_CACHE_DIR": str(cache),
        "LORAFIT_MODEL": str(model),
        "LORAFIT_DEVICE": "cpu",
        "LORAFIT_QUANTIZATION": "none",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    if " train " in command:
        values |= {f"LORAFIT_{name.upper()}": value for name, value in _SHORT_RUN.items()}
    return values


_SHORT_RUN = {
    "max_length": "128",
    "max_steps": "4",
    "warmup_steps": "1",
    "save_steps": "2",
    "eval_steps": "2",
    "effective_batch_size": "4",
    "per_device_train_batch_size": "4",
    "sample_prompts": "1",
    "torch_compile": "false",
}
