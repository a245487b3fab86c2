"""What the model writes at each validation, from the same prompts, kept in samples.jsonl."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorafit.data.chat import load_chat_format
from lorafit.errors import DataError
from lorafit.evaluation.evaluate import prompt_of
from lorafit.evaluation.generation import Sampling, generate_texts
from lorafit.files import plain_os_errors

if TYPE_CHECKING:
    from peft import PeftModel

    from lorafit.training.planning.run_plan import RunPlan

SAMPLES_FILE = "samples.jsonl"
MAX_NEW_TOKENS = 64
"""Enough to see how an answer begins; a validation should stay short."""


class Sampler:
    """Lets the model answer a few validation prompts, the likeliest token each time.

    Nothing random is drawn and nothing of the run is changed: losses are equal to the last bit
    with and without it. What fails costs the samples only.
    """

    def __init__(self, plan: "RunPlan", first_step: int) -> None:
        """Take the first prompts of the validation rows; drop samples after `first_step`."""
        self._path = Path(plan.settings.output_dir) / SAMPLES_FILE
        self._tokenizer = plan.tokenizer
        self._pad_token_id = plan.pad.token_id
        self._prompts, self._references = _prompts_of(plan)
        self.failure: str | None = None
        """Why there are no more samples, if so."""
        self._keep_until(first_step)

    def write(self, model: "PeftModel", step: int) -> None:
        """Append what the model answers after `step`."""
        if not self._prompts or self.failure is not None:
            return
        try:
            completions = self._generate(model)
            self._append(step, completions)
        except (OSError, RuntimeError, ValueError) as problem:
            self.failure = (str(problem).strip() or type(problem).__name__).splitlines()[0]

    def _generate(self, model: "PeftModel") -> list[str]:
        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return generate_texts(
                model,
                self._tokenizer,
                self._prompts,
                Sampling(max_new_tokens=MAX_NEW_TOKENS),
                pad_token_id=self._pad_token_id,
                batch_size=len(self._prompts),
            )

    def _append(self, step: int, completions: Sequence[str]) -> None:
        rows = zip(self._prompts, completions, self._references, strict=True)
        with plain_os_errors(), self._path.open("a", encoding="utf-8") as stream:
            for prompt, completion, reference in rows:
                row = {
                    "step": step,
                    "prompt": prompt,
                    "completion": completion,
                    "reference": reference,
                }
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _keep_until(self, step: int) -> None:
        """Drop what an interrupted run wrote after the checkpoint that is continued from."""
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
            kept = [line for line in lines if line and _step_of(line) <= step]
            self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        except FileNotFoundError:
            return
        except OSError as problem:
            self.failure = str(problem)


def _prompts_of(plan: "RunPlan") -> tuple[list[str], list[str]]:
    """Return the first prompts of the validation rows and what should be answered."""
    rows = plan.data.validation
    count = plan.settings.sample_prompts
    if rows is None or count == 0:
        return [], []
    records = rows.records[:count]
    chat = load_chat_format(plan.settings, plan.tokenizer) if plan.data.kind == "messages" else None
    try:
        prompts = [prompt_of(record, chat) for record in records]
    except DataError:  # rows of plain text have no prompt
        return [], []
    return prompts, [record.completion for record in records]


def _step_of(line: str) -> int:
    # A line that a kill cut in half belongs to a validation that will be run again.
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**63
