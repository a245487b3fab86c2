"""Train with transformers' Trainer and PEFT: a script as their documentation writes it.

    python train_transformers.py MODEL ROWS OUTPUT_DIR LEARNING_RATE

Nothing of lorafit is imported. The adapter is drawn and the rows are shuffled from seed 42, as
lorafit does by default, so that the losses of both can be laid side by side.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

MAX_LENGTH = 512


def encode(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """Return tokens and labels: the completion and the end token are learnt."""
    prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    completion = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    completion = [*completion, tokenizer.eos_token_id]
    ids, labels = prompt + completion, [-100] * len(prompt) + completion
    return {
        "input_ids": ids[:MAX_LENGTH],
        "attention_mask": [1] * len(ids[:MAX_LENGTH]),
        "labels": labels[:MAX_LENGTH],
    }


def main() -> None:
    """Train one epoch and leave the losses in trainer_state.json."""
    model_folder, rows, output_dir, learning_rate = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lines = Path(rows).read_text().splitlines()
    data: Any = [encode(tokenizer, json.loads(line)) for line in lines]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    targets = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    lora = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    torch.manual_seed(42)
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=TrainingArguments(
            output_dir=output_dir,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_train_epochs=1,
            learning_rate=float(learning_rate),
            lr_scheduler_type="constant",
            optim="adamw_torch",
            weight_decay=0.0,
            seed=42,
            data_seed=42,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
    )
    trainer.train()
    trainer.save_state()


if __name__ == "__main__":
    main()
