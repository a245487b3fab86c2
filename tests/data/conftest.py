"""A real byte-level BPE tokenizer, built in a fraction of a second, and rows to feed it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit.config.schema import Settings

END = "<|endoftext|>"
_CORPUS = [
    "Premise: all birds can fly. Hypothesis: Tweety can fly. Answer: entailment",
    "### Instruction: name a colour ### Response: blue",
    "user assistant system im_start im_end hello there yes no",
] * 10


def _build(bos: str | None = None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, *([bos] if bos else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token=bos)


@pytest.fixture(scope="session")
def build_tokenizer() -> Callable[..., Any]:
    return _build


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return _build()


@pytest.fixture(scope="session")
def tokenizer_with_bos() -> Any:
    return _build("<s>")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pairs() -> list[dict[str, str]]:
    return [{"prompt": f"Question {i}:", "completion": f"answer {i}"} for i in range(20)]


@pytest.fixture
def settings() -> Settings:
    return Settings(max_length=64)
