"""The library without its command line: settings, plan, training with an observer, answers.

python examples/from_python.py
"""

from pathlib import Path

from common import nli_rows, read_choices, write_rows

from lorafit.config.layers import Given, Layer, resolve_layers
from lorafit.hardware.detect import detect_device
from lorafit.report.records import StepRecord


class LossWatcher:
    """An observer of a run; every method of `lorafit.report.records.RunObserver`."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_start(self, num_steps: int, first_step: int) -> None:
        """The first step is about to be taken."""
        print(f"{num_steps} steps, from step {first_step}")

    def on_step(self, record: StepRecord) -> None:
        """A step is done."""
        self.losses.append(record.loss)

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Some of a validation is done."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint is whole on disk."""
        print(f"checkpoint of step {step}: {folder}")

    def on_note(self, text: str) -> None:
        """Something is worth knowing."""
        print(f"note: {text}")

    def on_end(self) -> None:
        """No step follows."""


def main() -> None:
    choices = read_choices(__doc__, steps=60)
    rows = (
        {"prompt": f"Premise: {row['premise']}\nReasoning:", "completion": " " + row["reasoning"]}
        for row in nli_rows("train", choices.at_most(400))
    )
    values = {
        "model": str(choices.model),
        "data": str(write_rows(choices.folder / "my.jsonl", rows)),
        "output_dir": str(choices.folder / "python"),
        "max_length": 160,
        "max_steps": choices.steps,
        "effective_batch_size": 16,
        "per_device_train_batch_size": 16,
        "learning_rate": 3e-3,
        "gradient_checkpointing": False,
    }
    # Each value is recorded with where it came from; here, this file.
    given = {name: Given(value, "examples/from_python.py") for name, value in values.items()}
    resolved = resolve_layers([Layer("from_python", "file", given)])

    # These import torch, which takes seconds: settings are checked before.
    from lorafit.evaluation.generation import Sampling, generate_texts
    from lorafit.evaluation.loading import load_for_inference
    from lorafit.training.planning.plan import plan_run
    from lorafit.training.run import run_training

    device = detect_device("cpu")
    plan = plan_run(resolved, device)
    print(f"{plan.schedule.total_steps} steps; {plan.batch.reason}")
    watcher = LossWatcher()
    result = run_training(plan, observers=[watcher])
    if watcher.losses:
        print(f"loss {watcher.losses[0]:.3f} -> {watcher.losses[-1]:.3f}")

    loaded = load_for_inference(resolved.settings, device, result.adapter)
    prompt = "Premise: Tessa owns three kayaks and nothing else.\nReasoning:"
    (answer,) = generate_texts(
        loaded.model, loaded.tokenizer, [prompt], Sampling(24), pad_token_id=loaded.pad.token_id
    )
    print(answer)


if __name__ == "__main__":
    main()
