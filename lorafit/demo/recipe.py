"""The settings with which `lorafit demo` trains: a short LoRA run that learns the task."""

from pathlib import Path

from lorafit.demo.nli import DATA_FOLDER

PROMPT_TEMPLATE = "Premise: {premise}\nHypothesis: {hypothesis}\nReasoning:"
COMPLETION_TEMPLATE = " {reasoning}\nAnswer: {label}"
"""The label is the last word, so that an answer can be read without a parser."""
ANSWER_TOKENS = 72
"""Longer than any completion of the data set; an answer that needs more is a wrong one."""
TEST_DATA = DATA_FOLDER / "test.jsonl"


def demo_settings(model_dir: Path) -> dict[str, object]:
    """Return the settings of the demo run on the base model in `model_dir`, by their names.

    The learning rate is far above that of a real model, because so small a model takes large
    steps well and the run is only some 500 steps long. The adapter covers all linear modules
    (the default of the architecture); nothing but the adapter is trained.
    """
    return {
        "model": str(model_dir),
        "data": str(DATA_FOLDER / "train.jsonl"),
        "validation_data": str(DATA_FOLDER / "validation.jsonl"),
        "prompt_template": PROMPT_TEMPLATE,
        "completion_template": COMPLETION_TEMPLATE,
        "label_field": "label",
        "max_length": 128,
        "compute_dtype": "float32",
        "gradient_checkpointing": False,
        "torch_compile": False,
        "lora_r": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.0,
        "learning_rate": 3e-3,
        "warmup_ratio": 0.05,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 4.0,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 1,
        "seed": 0,
    }
