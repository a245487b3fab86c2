"""Train with TRL's SFTTrainer, in its own environment.

python train_trl.py MODEL ROWS OUTPUT_DIR LEARNING_RATE plain|packing|padding-free
"""

import sys
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

WAYS: dict[str, dict[str, Any]] = {
    "plain": {"max_length": 512},
    "packing": {"max_length": 512, "packing": True},
    # Rows are not cut here: the longest has 510 tokens.
    "padding-free": {"max_length": None, "padding_free": True},
}


def main() -> None:
    """Train one epoch and leave the losses in trainer_state.json."""
    model_folder, rows, output_dir, learning_rate, way = sys.argv[1:]
    targets = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    trainer = SFTTrainer(
        model=model_folder,
        args=SFTConfig(
            output_dir=output_dir,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=4,
            num_train_epochs=1,
            learning_rate=float(learning_rate),
            lr_scheduler_type="constant",
            optim="adamw_torch",
            completion_only_loss=True,
            model_init_kwargs={"dtype": torch.float32},
            bf16=False,
            gradient_checkpointing=False,
            seed=42,
            data_seed=42,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **WAYS[way],
        ),
        train_dataset=load_dataset("json", data_files=rows, split="train"),
        peft_config=LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_state()


if __name__ == "__main__":
    main()
