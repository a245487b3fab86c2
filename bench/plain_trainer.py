"""A LoRA training script as transformers' documentation writes it: Trainer, PEFT, auto-resume.

    python bench/plain_trainer.py MODEL DATA OUTPUT_DIR

Run again after a kill, it resumes from what `get_last_checkpoint` finds.
"""

import json
import sys
from pathlib import Path
from typing import Any

MAX_STEPS = 12
SAVE_STEPS = 2
STEPS_FILE = "steps.jsonl"


def encode(tokenizer: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """Return ids and labels of a row; the prompt is not learnt."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = [*tokenizer(row["prompt"] + row["completion"])["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}


def main(model_dir: str, data: str, output_dir: str) -> None:
    """Train, or go on training."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_utils import get_last_checkpoint

    set_seed(42)
    run_dir = Path(output_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    lines = Path(data).read_text(encoding="utf-8").splitlines()
    rows = [encode(tokenizer, json.loads(line)) for line in lines]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_dir),
        LoraConfig(
            r=8,
            lora_alpha=32,
            lora_dropout=0.1,
            target_modules=["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"],
            task_type="CAUSAL_LM",
        ),
    )

    class StepFile(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
        """Writes each step's loss, so that the runs can be compared."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                with (run_dir / STEPS_FILE).open("a") as stream:
                    stream.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=output_dir,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=3,
            max_steps=MAX_STEPS,
            learning_rate=1e-2,
            warmup_steps=1,
            lr_scheduler_type="cosine",
            logging_steps=1,
            save_steps=SAVE_STEPS,
            save_total_limit=3,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[StepFile()],
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output_dir))
    trainer.save_model(str(run_dir / "adapter"))


if __name__ == "__main__":
    main(*sys.argv[1:])
