"""Keys that only one tool has, and what they are here; the rest is Hugging Face's vocabulary.

Written from the tools' own references of 2026: Axolotl 0.13, LLaMA-Factory 0.9, TRL 0.25.
"""

from typing import Literal

from lorafit.config.document import Plain
from lorafit.config.foreign import OPTIMIZERS, target_modules
from lorafit.config.outcomes import (
    Carried,
    Kept,
    Lost,
    Outcome,
    Rule,
    anyway,
    becomes,
    becomes_one_of,
    ignored,
    switches,
    unless_set,
)

Kind = Literal["python", "hf-json", "hydra", "axolotl", "llama-factory", "trl"]
_TOOL = {
    "python": "the file", "hf-json": "TrainingArguments and LoraConfig", "hydra": "the file",
    "axolotl": "Axolotl", "llama-factory": "LLaMA-Factory", "trl": "TRL",
}  # fmt: skip
KIND_NAMES: dict[Kind, str] = {
    "python": "a Python configuration",
    "hf-json": "a configuration in Hugging Face's names",
    "hydra": "a Hydra-style configuration",
    "axolotl": "an Axolotl configuration",
    "llama-factory": "a LLaMA-Factory configuration",
    "trl": "a TRL configuration",
}


def _axolotl_datasets(value: Plain) -> Outcome:
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        return Lost("lorafit trains on one file: join them, and give it as --data")
    path = value[0].get("path")
    if not isinstance(path, str):
        return Lost("the data set has no path")
    return Carried("data", path)


def _adapter(value: Plain) -> Outcome:
    if value == "qlora":
        return Carried("quantization", "nf4")
    if value == "lora":
        return Kept("lorafit trains LoRA adapters")
    return Lost("lorafit trains LoRA adapters only", stops_run=True)


def _attention_switch(name: str) -> Rule:
    return switches("attn_implementation", name, off="sdpa is the default")


def _share(value: Plain) -> Outcome:
    # An integer is a number of rows there, and a share is what lorafit takes.
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return Lost("lorafit holds out a share of the rows: validation_split: 0.1")
    return Kept("it is not set") if value is None else Carried("validation_split", value)


def _bf16_or_auto(value: Plain) -> Outcome:
    if value in ("auto", None, False, "full"):
        return Kept("bfloat16 is taken wherever the device has it")
    return Carried("compute_dtype", "bfloat16")


def _bits(value: Plain) -> Outcome:
    if value is None:
        return Kept("it is not set")
    name = {4: "nf4", 8: "int8"}.get(value) if isinstance(value, int) else None
    if name is None:
        return Lost("lorafit quantizes to 4 bit (nf4) or 8 bit (int8)", stops_run=True)
    return Carried("quantization", name)


def _must_be(value: Plain, what: str) -> Rule:
    return anyway(value, reason=what, otherwise=f"lorafit does not: {what}", stops=True)


_TEMPLATE = "prompts follow the tokenizer's chat template, or prompt_template: see --chat-template"

AXOLOTL: dict[str, Rule] = {
    "adapter": _adapter,
    "datasets": _axolotl_datasets,
    "test_datasets": _axolotl_datasets,
    "val_set_size": _share,
    "train_on_inputs": becomes("train_on_prompt"),
    "lora_target_linear": ignored("every Linear module of the architecture is the default"),
    "optimizer": becomes_one_of("optim", OPTIMIZERS),
    "bf16": _bf16_or_auto,
    "bfloat16": _bf16_or_auto,
    "float16": switches("compute_dtype", "float16", off="it is off"),
    "flash_attention": _attention_switch("flash_attention_2"),
    "sdp_attention": _attention_switch("sdpa"),
    "eager_attention": _attention_switch("eager"),
    "xformers_attention": unless_set("sdpa has the same memory without xformers"),
    "peft_use_rslora": becomes("use_rslora"),
    "peft_use_dora": becomes("use_dora"),
    "pad_to_sequence_len": ignored("rows are never padded further than they must be"),
    "gptq": unless_set("a base that is quantized already is not trained", stops=True),
    "eval_sample_packing": unless_set("rows of the validation are not packed"),
    "evals_per_epoch": unless_set("eval_steps counts steps: --eval-steps"),
    "saves_per_epoch": unless_set("save_steps counts steps: --save-steps"),
    "model_type": ignored("the model's own config.json says its type"),
    "tokenizer_type": ignored("the model's own files say its tokenizer"),
    "is_llama_derived_model": ignored("the model's own config.json says its type"),
    "strict": ignored("everything is checked"),
    "dataset_prepared_path": ignored("tokenized rows lie in the cache folder"),
    "chat_template": anyway("chatml", "tokenizer_default", reason="told with --chat-template",
                            otherwise=_TEMPLATE),
    "eval_table_size": ignored("lorafit evaluate --answers writes them all"),
    "eval_max_new_tokens": ignored("lorafit evaluate --max-new-tokens"),
}  # fmt: skip

LLAMA_FACTORY: dict[str, Rule] = {
    "stage": _must_be("sft", "supervised fine-tuning"),
    "do_train": ignored("train is what lorafit train does"),
    "finetuning_type": _must_be("lora", "LoRA"),
    "lora_target": target_modules,
    "template": ignored(_TEMPLATE),
    "dataset": unless_set("these are names of dataset_info.json: give the file as --data"),
    "dataset_dir": unless_set("it belongs to dataset_info.json: give the file as --data"),
    "eval_dataset": unless_set("these are names of dataset_info.json: --validation-data FILE"),
    "val_size": _share,
    "max_samples": unless_set("lorafit trains on all rows: cut the file"),
    "quantization_bit": _bits,
    "quantization_method": anyway("bnb", "bitsandbytes", reason="bitsandbytes quantizes here",
                                  otherwise="bitsandbytes quantizes here"),
    "flash_attn": becomes_one_of("attn_implementation", {
        "auto": "auto", "fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}),
    "additional_target": becomes("modules_to_save"),
    "disable_gradient_checkpointing": switches("gradient_checkpointing", False, off="it stays on"),
    "enable_liger_kernel": unless_set("lorafit has kernels of its own"),
    "use_unsloth": unless_set("lorafit has kernels of its own"),
    "overwrite_cache": ignored("the cache knows when data changed"),
    "preprocessing_num_workers": ignored("tokenizing chooses its own number of processes"),
    "plot_loss": ignored("the curve is in events.jsonl; --report-to tensorboard draws it"),
    "infer_dtype": ignored("it is about inference"),
}  # fmt: skip

TRL: dict[str, Rule] = {
    "dataset_config": unless_set("a hub data set is named without its configuration"),
    "dataset_test_split": unless_set("validation is a file or a share: --validation-data"),
    "dataset_num_proc": ignored("tokenizing chooses its own number of processes"),
    "assistant_only_loss": ignored("loss is on the answer only, unless train_on_prompt"),
    "completion_only_loss": ignored("loss is on the answer only, unless train_on_prompt"),
    "eos_token": unless_set("the model's own end-of-text closes each row"),
    "pad_token": unless_set("padding is masked by position"),
    "loss_type": anyway("nll", reason="the loss is the negative log-likelihood"),
}

HYDRA: dict[str, Rule] = {
    "defaults": unless_set(
        "it names files to merge: print the merged configuration (--cfg job), or choose lorafit's "
        "own groups, as in training=aggressive (lorafit config groups)"
    ),
    "_target_": ignored("lorafit builds its own objects"),
    **dict.fromkeys(
        ("model.name", "model.path", "model.id", "model.pretrained", "model.model", "model.hf_id"),
        becomes("model"),
    ),
    **dict.fromkeys(
        ("data.path", "data.train", "data.file", "dataset.path", "dataset.train", "dataset.name",
         "data.name"),
        becomes("data"),
    ),
    **dict.fromkeys(
        ("data.val", "data.validation", "data.valid", "dataset.val", "dataset.validation"),
        becomes("validation_data"),
    ),
    **dict.fromkeys(("optimizer.name", "optimizer.type", "optim.name"),
                    becomes_one_of("optim", {**OPTIMIZERS, "AdamW": "adamw_torch"})),
    **dict.fromkeys(
        ("scheduler.name", "scheduler.type", "lr_scheduler.name", "lr_scheduler.type"),
        becomes_one_of("lr_scheduler_type", {
            name: name for name in ("linear", "cosine", "constant", "constant_with_warmup",
                                    "polynomial", "inverse_sqrt")}),
    ),
    **dict.fromkeys(("eval.batch_size", "evaluation.batch_size", "validation.batch_size"),
                    becomes("per_device_eval_batch_size")),
}  # fmt: skip

NESTED: dict[str, str] = {
    "hydra": "it is about Hydra itself",
    "accelerator_config": "it is about several processes",
    "fsdp_config": "it is about several processes",
    "gradient_checkpointing_kwargs": "lorafit recomputes without re-entering",
}
"""Sections that say nothing about a run here, whatever they hold."""


def tool_of(kind: Kind) -> str:
    """Return what a file of this kind configures, as a name for sentences."""
    return _TOOL[kind]


DIALECTS: dict[Kind, dict[str, Rule]] = {
    "python": HYDRA,
    "hf-json": {},
    "hydra": HYDRA,
    "axolotl": AXOLOTL,
    "llama-factory": LLAMA_FACTORY,
    "trl": TRL,
}

_TRANSFORMERS: dict[str, Plain] = {
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "learning_rate": 5e-5,
    "num_train_epochs": 3.0, "lr_scheduler_type": "linear", "warmup_ratio": 0.0,
    "gradient_checkpointing": False, "torch_compile": False,
}  # fmt: skip
_LORA: dict[str, Plain] = {"lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}

IMPLIED: dict[Kind, dict[str, Plain]] = {
    "python": {},
    "hf-json": {},
    "hydra": {},
    "axolotl": {
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_length": 512,
        "num_train_epochs": 1.0, "warmup_ratio": 0.03, "lora_dropout": 0.0,
        "validation_split": 0.0, "gradient_checkpointing": False, "torch_compile": False,
    },
    "llama-factory": {
        **_TRANSFORMERS, "gradient_checkpointing": True, "max_length": 2048, "lora_r": 8,
        "lora_dropout": 0.0, "validation_split": 0.0,
    },
    "trl": {
        **_TRANSFORMERS, "learning_rate": 2e-5, "gradient_checkpointing": True,
        "max_length": 1024, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
    },
}  # fmt: skip
"""What a file of a tool means by what it leaves out, where lorafit's own default differs."""

HF_JSON_IMPLIED = {"training": _TRANSFORMERS, "lora": _LORA}
"""The same for TrainingArguments and for LoraConfig, of which a JSON file may hold either."""
