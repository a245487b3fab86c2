"""Which tool a configuration was written for, told by the keys that only that tool has."""

from pathlib import Path

from lorafit.config.convert.dialects import KIND_NAMES, Kind
from lorafit.config.document import Document
from lorafit.errors import ConfigError, Problem
from lorafit.hardware.info import Choice

# Two of a tool's own keys, or a single one that no other tool has, are enough.
_OWN_KEYS: dict[Kind, frozenset[str]] = {
    "axolotl": frozenset(
        {"sequence_len", "sample_packing", "val_set_size", "lora_target_linear", "adapter",
         "datasets", "dataset_prepared_path", "evals_per_epoch", "saves_per_epoch",
         "train_on_inputs", "pad_to_sequence_len", "is_llama_derived_model", "base_model",
         "flash_attention", "special_tokens"}
    ),
    "llama-factory": frozenset(
        {"stage", "finetuning_type", "lora_target", "cutoff_len", "template", "dataset_dir",
         "quantization_bit", "plot_loss", "max_samples", "overwrite_cache", "flash_attn",
         "preprocessing_num_workers", "val_size"}
    ),
    "trl": frozenset(
        {"use_peft", "dataset_name", "dataset_config", "dataset_train_split", "lora_task_type",
         "lora_target_modules", "use_bnb_nested_quant", "dataset_text_field", "packing",
         "assistant_only_loss", "completion_only_loss", "model_revision"}
    ),
}  # fmt: skip
_HF_KEYS = frozenset(
    {"per_device_train_batch_size", "num_train_epochs", "learning_rate", "lr_scheduler_type",
     "peft_type", "lora_alpha", "target_modules", "load_in_4bit", "lora_r", "r", "optim",
     "gradient_accumulation_steps", "output_dir", "warmup_ratio", "warmup_steps", "bf16"}
)  # fmt: skip
_PRESET_KEYS = frozenset({"settings", "hardware"})


def detect_kind(document: Document, path: Path) -> Choice[Kind]:
    """Return the tool that a file was written for, and what gave it away.

    Raises:
        ConfigError: no key is of any of the tools, or the file is a preset of lorafit.
    """
    if path.suffix.lower() == ".py":
        return Choice("python", "its name ends in .py")
    top = document.entries.keys()
    if top >= _PRESET_KEYS:
        hint = "lorafit presets show, or copy its settings into a file for --config"
        raise ConfigError([Problem(document.source, "this is a preset of lorafit already", hint)])
    hydra = _hydra_signs(document)
    if hydra:
        return Choice("hydra", f"it has {hydra}")
    found = {kind: sorted(keys & top) for kind, keys in _OWN_KEYS.items()}
    kind = max(found, key=lambda kind: len(found[kind]))
    if len(found[kind]) >= 2:
        return Choice(kind, f"{_listed(found[kind])} are keys of {kind}")
    leaves = {key.rpartition(".")[2] for key, _ in document.flat()}
    known = sorted(_HF_KEYS & leaves)
    if path.suffix.lower() == ".json" and known:
        return Choice("hf-json", f"{_listed(known)} are names of TrainingArguments and LoraConfig")
    if any(isinstance(node.value, dict) for node in document.entries.values()):
        return Choice("hydra", "its settings stand in sections")
    if known:
        return Choice("hf-json", f"{_listed(known)} are names of TrainingArguments and LoraConfig")
    raise ConfigError(
        [
            Problem(
                document.source,
                "no key says which tool this file was written for",
                "say it with --from: " + ", ".join(KIND_NAMES),
            )
        ]
    )


def _hydra_signs(document: Document) -> str | None:
    if "hydra" in document.entries:
        return "a section `hydra`"
    if isinstance(getattr(document.entries.get("defaults"), "value", None), list):
        return "a list `defaults` of config groups"
    for key, node in document.flat():
        if key.rpartition(".")[2] == "_target_":
            return f"`{key}`"
        if isinstance(node.value, str) and "${" in node.value:
            return f"an interpolation in `{key}`"
    return None


def _listed(names: list[str]) -> str:
    shown = names[:4]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
