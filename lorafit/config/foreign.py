"""Names of Hugging Face's own configurations, and what each of them is here.

`TrainingArguments`, `LoraConfig`, `BitsAndBytesConfig` and the scripts around them share a
vocabulary. A key of it that a settings file holds becomes a setting, is what lorafit does anyway,
or cannot be carried over, for a reason that is told. Names and defaults are those of transformers
5.23 and peft 0.21.
"""

from lorafit.config.document import Plain
from lorafit.config.fields import field_rule, show_value
from lorafit.config.outcomes import (
    NO_SETTING,
    Carried,
    Kept,
    Lost,
    Outcome,
    Rule,
    anyway,
    becomes,
    becomes_one_of,
    ignored,
    is_off,
    switches,
    unless_set,
)
from lorafit.text import excerpt


def target_modules(value: Plain) -> Outcome:
    """Return what a list of LoRA targets is here; `all` and `all-linear` are the default."""
    if value is None or value in ("all", "all-linear", ["all"], ["all-linear"]):
        return Kept("every Linear module of the architecture is the default")
    if isinstance(value, str):
        names = [name.strip() for name in value.split(",")]
        if not all(name.replace("_", "").isalnum() for name in names):
            reason = "target_modules takes names of modules, not a pattern"
            return Lost(reason, stops_run=True)
        return Carried("target_modules", [*names])
    return Carried("target_modules", value)


def trackers(value: Plain) -> Outcome:
    """Return which of the trackers are here."""
    names = [value] if isinstance(value, str) else value
    known = field_rule("report_to").choices
    if names is None:
        return Kept("it is not set")
    if names in ([], ["none"]):
        return Carried("report_to", ["none"] if "none" in known else [])
    if isinstance(names, list) and all(name in known for name in names):
        return Carried("report_to", [*names])
    return Lost(f"lorafit's trackers are {', '.join(known)}; events.jsonl has every step anyway")


def _warmup_steps(value: Plain) -> Outcome:
    # transformers 5 writes a ratio as a float below 1, and 0 where a ratio may stand beside it.
    if isinstance(value, float) and 0 < value < 1:
        return Carried("warmup_ratio", value)
    if value in (None, 0):
        return Kept("0 leaves the warm-up to warmup_ratio")
    if isinstance(value, float) and value == int(value):
        return Carried("warmup_steps", int(value))
    return Carried("warmup_steps", value)


def _max_steps(value: Plain) -> Outcome:
    is_unset = value is None or (isinstance(value, int) and value <= 0)
    return Kept("the epochs set the length") if is_unset else Carried("max_steps", value)


def _eval_strategy(value: Plain) -> Outcome:
    if value in (None, "steps"):
        return Kept("validation runs every eval_steps and at the end")
    if value in ("no", False):
        return Carried("validation_split", 0.0)
    return Lost("lorafit validates every eval_steps steps and at the end, not by epochs")


def _quant_type(value: Plain) -> Outcome:
    if value in (None, "nf4"):
        return Kept("nf4 is lorafit's 4-bit format")
    return Lost("lorafit's 4-bit format is nf4", stops_run=True)


_DTYPES: dict[str, Plain] = {
    "auto": "auto",
    **{
        prefix + spelled: name
        for prefix in ("", "torch.")
        for spelled, name in (
            ("bfloat16", "bfloat16"), ("bf16", "bfloat16"), ("float16", "float16"),
            ("half", "float16"), ("fp16", "float16"), ("float32", "float32"), ("fp32", "float32"),
        )
    },
}  # fmt: skip

OPTIMIZERS: dict[str, Plain] = {
    **{name: name for name in field_rule("optim").choices},
    "adamw": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_torch_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
}
_SCHEDULERS: dict[str, Plain] = {name: name for name in field_rule("lr_scheduler_type").choices}
_ATTENTION: dict[str, Plain] = {name: name for name in field_rule("attn_implementation").choices}

_UNQUANTIZED = "the base is not quantized unless asked for"
_PRECISION = "the precision is chosen by device unless asked for"
_PARALLEL = "--num-processes starts several; --parallelism fsdp shares the base weights among them"
_HUB = "training uploads nothing; lorafit export RUN --push OWNER/NAME does"
_KEEPS = "lorafit keeps the last checkpoints and ends with the last adapter"

HF_RULES: dict[str, Rule] = {
    # -- Model and quantization
    **dict.fromkeys(
        ("model_name_or_path", "model_name", "model_id", "base_model", "base_model_id",
         "base_model_name", "base_model_name_or_path", "pretrained_model_name_or_path",
         "model_path"),
        becomes("model"),
    ),
    "model_revision": becomes("revision"),
    **dict.fromkeys(
        ("torch_dtype", "dtype", "bnb_4bit_compute_dtype", "compute_type"),
        becomes_one_of("compute_dtype", _DTYPES),
    ),
    "bf16": switches("compute_dtype", "bfloat16", off=_PRECISION),
    "fp16": switches("compute_dtype", "float16", off=_PRECISION),
    **dict.fromkeys(
        ("load_in_4bit", "use_4bit", "use_4bit_quantization", "use_qlora", "_load_in_4bit"),
        switches("quantization", "nf4", off=_UNQUANTIZED),
    ),
    **dict.fromkeys(
        ("load_in_8bit", "use_8bit", "_load_in_8bit"),
        switches("quantization", "int8", off=_UNQUANTIZED),
    ),
    **dict.fromkeys(("bnb_4bit_quant_type", "quant_type"), _quant_type),
    **dict.fromkeys(
        ("bnb_4bit_use_double_quant", "use_double_quant", "use_nested_quant",
         "use_bnb_nested_quant", "double_quantization"),
        becomes("double_quant"),
    ),
    "quant_method": anyway("bitsandbytes", reason="bitsandbytes is what quantizes here"),
    "bnb_4bit_quant_storage": anyway("uint8", "bfloat16", reason="the storage is lorafit's choice"),
    "use_flash_attention_2": switches(
        "attn_implementation", "flash_attention_2", off="sdpa is the default"
    ),
    "device_map": ignored("the whole model lies on the device of the run"),
    # -- LoRA
    **dict.fromkeys(("r", "rank", "lora_rank"), becomes("lora_r")),
    "alpha": becomes("lora_alpha"),
    "dropout": becomes("lora_dropout"),
    **dict.fromkeys(("lora_target_modules", "lora_targets"), target_modules),
    "lora_modules_to_save": becomes("modules_to_save"),
    **dict.fromkeys(
        ("bias", "lora_bias"),
        anyway("none", False, reason="biases stay frozen", otherwise="biases stay frozen here"),
    ),
    **dict.fromkeys(
        ("task_type", "lora_task_type"),
        anyway("CAUSAL_LM", reason="lorafit trains causal language models",
               otherwise="lorafit trains causal language models: a class is written as text",
               stops=True),
    ),
    "peft_type": anyway("LORA", reason="lorafit trains LoRA", stops=True,
                        otherwise="lorafit trains LoRA adapters only"),
    **dict.fromkeys(("use_peft", "use_lora"),
                    anyway(True, reason="lorafit trains adapters", stops=True,
                           otherwise="lorafit trains adapters, never all weights")),
    "inference_mode": ignored("an adapter in training is never in inference mode"),
    "fan_in_fan_out": anyway(False, reason="the targets are Linear modules"),
    "init_lora_weights": anyway(True, "default", reason="the usual start: B is 0"),
    # -- Data
    **dict.fromkeys(
        ("train_file", "train_path", "train_data", "train_data_path", "train_dataset", "data_path",
         "dataset_name", "dataset_path", "training_data"),
        becomes("data"),
    ),
    **dict.fromkeys(
        ("validation_file", "validation_path", "val_file", "val_path", "val_data", "valid_file",
         "val_data_path", "validation_data_path", "eval_file", "eval_path", "eval_data",
         "eval_data_path", "eval_dataset"),
        becomes("validation_data"),
    ),
    "dataset_train_split": becomes("data_split"),
    **dict.fromkeys(("val_split", "validation_ratio", "val_size", "test_size"),
                    becomes("validation_split")),
    **dict.fromkeys(("model_max_length", "cutoff_len", "sequence_len", "seq_length", "max_len"),
                    becomes("max_length")),
    "dataset_text_field": anyway("text", reason="`text` is the field of plain rows",
                                 otherwise="name the field in a template: prompt_template"),
    **dict.fromkeys(("packing", "sample_packing"), becomes("packing")),
    "group_by_length": unless_set("rows are drawn at random, not by length"),
    "train_sampling_strategy": anyway("random", reason="rows are drawn at random"),
    # -- Batch, length of the run, learning rate
    "batch_size_per_gpu": becomes("per_device_train_batch_size"),
    "eval_batch_size": becomes("per_device_eval_batch_size"),
    "accumulation_steps": becomes("gradient_accumulation_steps"),
    "grad_accumulation_steps": becomes("gradient_accumulation_steps"),
    "grad_accum_steps": becomes("gradient_accumulation_steps"),
    "grad_accum": becomes("gradient_accumulation_steps"),
    "num_epoch": becomes("num_train_epochs"),
    "lr": becomes("learning_rate"),
    **dict.fromkeys(("lr_scheduler", "scheduler", "scheduler_type"),
                    becomes_one_of("lr_scheduler_type", _SCHEDULERS)),
    "optimizer": becomes_one_of("optim", OPTIMIZERS),
    **dict.fromkeys(("gradient_clipping", "max_gradient_norm", "clip_grad_norm"),
                    becomes("max_grad_norm")),
    **dict.fromkeys(("use_gradient_checkpointing", "activation_checkpointing"),
                    becomes("gradient_checkpointing")),
    "gradient_checkpointing_kwargs": ignored("lorafit recomputes without re-entering"),
    "adam_beta1": anyway(0.9, reason="0.9 is what AdamW has here"),
    "adam_beta2": anyway(0.999, reason="0.999 is what AdamW has here"),
    "adam_epsilon": anyway(1e-8, reason="1e-8 is what AdamW has here"),
    "neftune_noise_alpha": unless_set("lorafit adds no noise to embeddings"),
    "label_smoothing": becomes("label_smoothing_factor"),
    # -- Precision and speed
    "tf32": ignored("matrix products of 16-bit numbers do not use TF32"),
    "use_liger_kernel": unless_set("lorafit has kernels of its own: kernels: lorafit"),
    "use_cache": anyway(False, reason="training keeps no cache of keys and values"),
    "auto_find_batch_size": unless_set("lorafit estimates before it starts: --fit"),
    "use_cpu": switches("device", "cpu", off="the device is detected"),
    # -- Records, validation, checkpoints
    **dict.fromkeys(("eval_strategy", "evaluation_strategy"), _eval_strategy),
    "save_strategy": anyway("steps", reason="checkpoints come every save_steps",
                            otherwise="lorafit saves every save_steps steps"),
    "logging_strategy": anyway("steps", reason="a line comes every logging_steps",
                               otherwise="lorafit prints a line every logging_steps steps"),
    "load_best_model_at_end": unless_set(_KEEPS),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), ignored(_KEEPS)),
    **dict.fromkeys(("early_stopping_patience", "early_stopping_threshold"), unless_set(_KEEPS)),
    "save_only_model": unless_set("a checkpoint here always continues exactly"),
    "save_safetensors": anyway(True, reason="safetensors is the only format here"),
    "overwrite_output_dir": ignored("a folder with another run is refused, never overwritten"),
    "resume_from_checkpoint": unless_set("give --resume to the command instead"),
    "logging_first_step": ignored("events.jsonl has every step"),
    "logging_dir": ignored("records lie in output_dir"),
    "run_name": ignored("a run is named by its output_dir"),
    "push_to_hub": unless_set(_HUB),
    **dict.fromkeys(("hub_model_id", "hub_revision"), unless_set(_HUB)),
    # -- Several processes
    **dict.fromkeys(
        ("deepspeed", "fsdp", "parallelism_config", "tensor_parallel_size"),
        unless_set(_PARALLEL),
    ),
    **dict.fromkeys(("ddp_find_unused_parameters", "ddp_timeout", "ddp_backend", "local_rank",
                     "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
                     "fsdp_config", "average_tokens_across_devices"),
                    ignored("it is about several processes")),
}  # fmt: skip

# How a few settings are written elsewhere, though their names are lorafit's too.
_OTHER_SPELLINGS: dict[str, Rule] = {
    "max_steps": _max_steps,
    "warmup_steps": _warmup_steps,
    "optim": becomes_one_of("optim", OPTIMIZERS),
    "lr_scheduler_type": becomes_one_of("lr_scheduler_type", _SCHEDULERS),
    "attn_implementation": becomes_one_of("attn_implementation", _ATTENTION),
    "target_modules": target_modules,
    "report_to": trackers,
    "data_seed": unless_set("one seed draws everything: seed"),
}

# What these say has no counterpart here and changes no result while it has this value.
_DEFAULTS_ELSEWHERE: dict[str, tuple[Plain, ...]] = {
    "accelerator_config": (), "dataloader_in_order": (True,), "dataloader_pin_memory": (True,),
    "disable_tqdm": (True, False), "do_eval": (True, False), "do_predict": (False,),
    "do_train": (True, False), "eval_delay": (0,), "eval_do_concat_batches": (True,),
    "hub_strategy": ("every_save", "end", "checkpoint"), "include_num_input_tokens_seen": ("no",),
    "log_level": ("passive", "info", "warning"), "log_level_replica": ("warning", "passive"),
    "log_on_each_node": (True,), "logging_nan_inf_filter": (True,), "megatron_core": (),
    "past_index": (-1,), "peft_version": (), "project": ("huggingface",), "qalora_group_size": (),
    "remove_unused_columns": (True, False), "skip_memory_metrics": (True,), "debug": (),
    "llm_int8_threshold": (6.0,), "length_column_name": ("length",), "tp_size": (0, 1),
    "fp16_opt_level": ("O1",), "half_precision_backend": ("auto",),
    "trackio_space_id": ("trackio",),
    "_n_gpu": (0, 1), "padding_side": ("right",), "trust_remote_code": (False,),
}  # fmt: skip
_ANY_VALUE = frozenset(name for name, values in _DEFAULTS_ELSEWHERE.items() if not values)


def hf_rule(name: str) -> Rule | None:
    """Return the rule of a key of Hugging Face's vocabulary that is no name of a setting."""
    return HF_RULES.get(name)


def spelling_rule(name: str) -> Rule | None:
    """Return the rule of a setting that others spell differently, or None."""
    return _OTHER_SPELLINGS.get(name)


def unknown_outcome(name: str, value: Plain) -> Outcome:
    """Return what becomes of a key that no table knows: nothing is lost while it is off."""
    if value in _DEFAULTS_ELSEWHERE.get(name, ()) or name in _ANY_VALUE:
        return Kept("it has the usual value, and lorafit no such setting")
    if is_off(value):
        return Kept("it is off")
    shown = excerpt("a mapping" if isinstance(value, dict) else show_value(value), 60)
    return Lost(f"{NO_SETTING} (the value: {shown})")
