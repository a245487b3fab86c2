"""Other names under which a setting is accepted; each maps to the one name in the schema."""

ALIASES: dict[str, str] = {
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "max_seq_length": "max_length",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "num_batches": "max_steps",
    "checkpoint_dir": "output_dir",
    "save_interval_steps": "save_steps",
    "eval_interval_steps": "eval_steps",
    "log_interval_steps": "logging_steps",
    "lora_rank": "lora_r",
    "lora.r": "lora_r",
    "lora.rank": "lora_r",
    "lora.alpha": "lora_alpha",
    "lora.dropout": "lora_dropout",
}

SECTIONS: frozenset[str] = frozenset(
    {
        "model",
        "lora",
        "data",
        "training",
        "batch",
        "optimizer",
        "optimization",
        "scheduler",
        "logging",
        "run",
        "grpo",
        "dpo",
        # The six sections of QLoRA's JSON files, and the names of Hugging Face's own classes.
        *(
            f"{section}{ending}"
            for section in ("model", "data", "lora", "training", "optimization", "logging")
            for ending in ("_config", "_configuration", "_args", "_arguments")
        ),
        "quantization",
        "quantization_config",
        "bnb_config",
        "peft_config",
        "hyperparameters",
        "training_hyperparameters",
        "checkpointing",
        "logging_and_checkpointing",
    }
)
"""Section names that a config file or a `section.key=value` override may group settings under.
A section carries no meaning of its own: `training.max_length` is `max_length`."""
