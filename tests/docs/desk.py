"""A folder as the documents take it for given, in which their commands are typed."""

import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import load_script
from tiny import ROOT, Outcome, write_jsonl

# What stands for something of the reader's own, and what is there in its place.
STAND_INS = {
    "FILE": "examples/qlora/default.json",
    "outputs/first/merged": "model",
    "outputs/first/checkpoint-100": "outputs/first/checkpoint-2",
    "outputs/first/checkpoint-200": "outputs/first/checkpoint-4",
}
# Words to add: commands that take their model from the flag alone, or name one of the hub; and
# several processes, which tests/distributed starts: here they are planned.
ADDED = {
    r"lorafit data inspect | model=gemma3_1b ": "--model ./model",
    r"lorafit train .*--num-processes ": "--dry-run",
    # A group of settings has its own number of steps, which outranks the environment.
    r"lorafit train .*(training=|experiment=)": "max_steps=4",
}
# Files that readers have, and whose rows they hold.
_ROWS = {"train": "my", "data/train": "my", "data/validation": "test"}
_REWARDS = """
def short(prompts, completions, **fields):
    return [-0.01 * len(text.split()) for text in completions]
"""
_BATCH = ("LORAFIT_EFFECTIVE_BATCH_SIZE", "LORAFIT_PER_DEVICE_TRAIN_BATCH_SIZE")
# Variables that a command does not get: GRPO and DPO hold nothing out, a command with a batch or
# processes of its own has its preset's for the rest, and a longer run has its preset's pauses.
_LEFT_OUT = {
    "--max-steps ": ("LORAFIT_EVAL_STEPS", "LORAFIT_SAVE_STEPS"),
    " --method ": ("LORAFIT_EVAL_STEPS", "LORAFIT_SAMPLE_PROMPTS"),
    "batch": _BATCH,
    " --num-processes ": _BATCH,
}


def words_of(text: str) -> tuple[list[str], str]:
    """Return the words after `lorafit` that a command is run with, and what comes from its pipe."""
    piped = re.match(r'echo "(.*)" \| ', text)
    words = shlex.split(re.sub(r" > \S+$", "", text[piped.end() :] if piped else text))[1:]
    for pattern, more in ADDED.items():
        if re.search(pattern, text):
            words += shlex.split(more)
    return [STAND_INS.get(word, word) for word in words], piped[1] if piped else "Hello"


class Desk:
    """The folder, and a way to type commands there."""

    def __init__(self, folder: Path, run: Callable[..., Outcome]) -> None:
        self.folder = folder
        self._run = run
        self._offline = load_script("offline")
        self._num_typed = 0

    def environment(self, text: str) -> dict[str, str]:
        """Return the variables with which a command takes a tiny model, and trains a few steps."""
        cache = Path(os.environ["LORAFIT_CACHE_DIR"])
        found: dict[str, str] = self._offline.environment(text, self.folder / "model", cache)
        if " train " in text:
            # Runs that the documents do not name get a folder each.
            self._num_typed += 1
            found["LORAFIT_OUTPUT_DIR"] = f"outputs/unnamed-{self._num_typed}"
        left_out = [name for part, names in _LEFT_OUT.items() if part in text for name in names]
        return {name: value for name, value in found.items() if name not in left_out}

    def type(self, text: str) -> Outcome:
        """Run a command to its end."""
        words, piped = words_of(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "stdin", io.StringIO(f"{piped}\n"))
            for name, value in self.environment(text).items():
                patch.setenv(name, value)
            return self._run(*words)

    def prepare(self) -> None:
        """Put there what the documents take for given: a model, data, settings, finished runs."""
        folder = self.folder
        self._offline.make_model(folder / "model")
        self._offline.make_data(folder)
        (folder / "data").mkdir()
        for name, source in _ROWS.items():
            shutil.copy(folder / f"{source}.jsonl", folder / f"{name}.jsonl")
        rows = [json.loads(line) for line in (folder / "my.jsonl").read_text("utf-8").splitlines()]
        pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " no"}
                 for row in rows]  # fmt: skip
        write_jsonl(folder / "pairs.jsonl", pairs)
        prompts = [{"prompt": row["prompt"], "answer": row["label"]} for row in rows]
        write_jsonl(folder / "prompts.jsonl", prompts)
        (folder / "rewards.py").write_text(_REWARDS, encoding="utf-8")
        settings = "preset: balanced\nlearning_rate: 1.0e-4\ndata: my.jsonl\n"
        (folder / "my.yaml").write_text(settings, encoding="utf-8")
        trainer = {"learning_rate": 1e-4, "num_train_epochs": 1, "r": 8, "fp16": True}
        (folder / "trainer.json").write_text(json.dumps(trainer), encoding="utf-8")
        (folder / "models").mkdir()
        (folder / "models" / "phi-2").symlink_to("../model")
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "configs").mkdir()
        python = ROOT / "tests" / "systems" / "data" / "ablation2_best.py"
        shutil.copy(python, folder / "configs" / "ablation1_best.py")
        for name in ("first", "second", "run"):
            text = f"lorafit train --preset balanced --data my.jsonl --output-dir outputs/{name}"
            done = self.type(text)
            assert done.code == 0, done.err
