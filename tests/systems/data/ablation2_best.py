"""Third track, best version: larger adapter, low rate, five epochs."""

import os

from transformers import TrainingArguments

MODEL_NAME = "mistralai/Mistral-7B-v0.1"
MAX_SEQ_LENGTH = 512
BASE_BATCH = 4
SCRATCH = os.environ.get("SCRATCH", "/tmp")

lora_config = {
    "r": 32,
    "lora_alpha": 64,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "bias": "none",
    "task_type": "CAUSAL_LM",
}

training_args = TrainingArguments(
    output_dir=os.path.join(SCRATCH, "ablation2"),
    num_train_epochs=5,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=64 // BASE_BATCH,
    learning_rate=5e-5,
    warmup_ratio=0.03,
    lr_scheduler_type="cosine",
    max_grad_norm=0.3,
    gradient_checkpointing=True,
    bf16=True,
    report_to="none",
)

seed = 42
if os.environ.get("QUICK"):
    seed = 7

os.makedirs(SCRATCH, exist_ok=True)
