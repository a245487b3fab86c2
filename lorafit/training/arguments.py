"""Settings as transformers' Trainer wants them."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from lorafit.config.schema import Settings


def training_arguments(
    settings: Settings,
    *,
    run_dir: Path,
    rows_per_step: int,
    warmup_steps: int,
    dtype: torch.dtype,
    device_kind: str,
    compile_model: bool,
    validate: bool,
) -> TrainingArguments:
    """Translate settings into transformers' arguments; everything else there is switched off.

    `rows_per_step` are the rows, or packed bins, that a device takes in an optimizer step: the
    Trainer's batch. It accumulates nothing.
    """
    return TrainingArguments(
        output_dir=str(run_dir),
        per_device_train_batch_size=rows_per_step,
        gradient_accumulation_steps=1,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        # Base weights are already in the compute dtype and adapters are fp32 masters, so that
        # only float16 needs autocast: its gradients have to be scaled.
        fp16=dtype == torch.float16,
        use_cpu=device_kind == "cpu",
        torch_compile=compile_model,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=settings.dataloader_num_workers,
        dataloader_pin_memory=device_kind == "cuda",
        remove_unused_columns=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validate else "no",
        eval_steps=settings.eval_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        report_to=[],
        disable_tqdm=True,
        label_names=["labels"],
    )
