"""Tiny real things that tests share: models, rows, and commands in a process of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
END = "<|endoftext|>"
_COLOURS = ("red", "blue", "green", "white", "black")
_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
}


def build_tokenizer(*, adds_bos: bool = False) -> Any:
    """Train a byte-level BPE tokenizer with `<|endoftext|>` as id 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END, *(["<s>"] if adds_bos else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([f"the colour is {colour}" for colour in _COLOURS], trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    bos = "<s>" if adds_bos else None
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token=bos)


def _config(architecture: str, options: dict[str, Any]) -> Any:
    import transformers

    classes = {
        "phi": transformers.PhiConfig,
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "gemma3": transformers.Gemma3TextConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    shape = dict(_SHAPE, vocab_size=320)
    if architecture == "phi":
        shape |= {"num_key_value_heads": 4, "resid_pdrop": 0.1}
    if architecture == "gemma3":
        shape |= {"head_dim": 8, "sliding_window": 16, "pad_token_id": 0}
    return classes[architecture](**(shape | options))


def build_model(folder: Path, architecture: str, dtype: str, options: dict[str, Any]) -> Path:
    """Write a random model and its tokenizer into `folder`; the same call gives the same bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_config(architecture, options))
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    adds_bos = architecture in ("llama", "mistral", "gemma3")
    build_tokenizer(adds_bos=adds_bos).save_pretrained(folder)
    return folder


def colour_rows(count: int) -> list[dict[str, str]]:
    """Return prompt and completion rows of different lengths, no two alike."""
    return [
        {
            "prompt": f"{'the ' * (index % 4)}colour of thing {index} is",
            "completion": " " + " and ".join(_COLOURS[: index % 3 + 1]),
            "label": _COLOURS[index % 3],
        }
        for index in range(count)
    ]


def count_supervised(labels: Any) -> int:
    """Return the number of targets in labels [rows, tokens]: the first column predicts nothing."""
    return int((labels[:, 1:] != -100).sum())


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Outcome(NamedTuple):
    """What a command left on its two streams, and its exit code."""

    code: int
    out: str
    err: str


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process of its own: this source tree, offline, one thread."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("LORAFIT_")}
    fixed = {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        "PYTHONWARNINGS": "default",
    }
    return {**environment, **fixed, **changes}


def start_lorafit(*arguments: object, **changes: str) -> "subprocess.Popen[str]":
    """Start a command in a process of its own, both streams piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "lorafit", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(**changes),
    )
