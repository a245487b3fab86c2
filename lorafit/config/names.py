"""From the name that a person wrote to the one name of the schema."""

from lorafit.config.aliases import ALIASES, SECTIONS
from lorafit.config.schema import Settings
from lorafit.text import excerpt, nearest

SECRET_NAMES = frozenset(
    {
        "hub_token",
        "hf_token",
        "token",
        "auth_token",
        "access_token",
        "use_auth_token",
        "api_key",
        "wandb_api_key",
        "password",
        "secret",
    }
)

USUAL_NAMES = {
    "lr": "learning_rate",
    "r": "lora_r",
    "rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "bs": "per_device_train_batch_size",
    "global_batch_size": "effective_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "grad_acc": "gradient_accumulation_steps",
    "steps": "max_steps",
    "warmup": "warmup_ratio",
    "max_len": "max_length",
    "seq_len": "max_length",
    "sequence_len": "max_length",
    "cutoff_len": "max_length",
    "base_model": "model",
    "model_name_or_path": "model",
    "dataset": "data",
    "datasets": "data",
    "train_file": "data",
    "val_set_size": "validation_split",
    "bf16": "compute_dtype",
    "fp16": "compute_dtype",
    "load_in_4bit": "quantization",
    "flash_attention": "attn_implementation",
    "optimizer": "optim",
    "lr_scheduler": "lr_scheduler_type",
    "scheduler": "lr_scheduler_type",
    "sample_packing": "packing",
    "wandb": "report_to",
}
"""What people write who come from elsewhere, for the hint alone: nothing is taken in silence."""


_SHORT_SECTIONS = sorted(section for section in SECTIONS if "_" not in section)


def canonical_name(name: str) -> str | None:
    """Return the setting that `name` means: itself, an alias, or `section.name`; None: unknown."""
    if name in Settings.model_fields:
        return name
    if name in ALIASES:
        return ALIASES[name]
    section, dot, rest = name.partition(".")
    if dot and section in SECTIONS and "." not in rest:
        return canonical_name(rest)
    return None


def unknown_name(name: str) -> tuple[str, str]:
    """Return the message and the hint for a name that means no setting."""
    last = name.rsplit(".", 1)[-1]
    if last == "trust_remote_code":
        return (
            "lorafit never runs code that comes with a model, so there is nothing to turn on",
            "use a model of an architecture that transformers has itself",
        )
    if last.lower() in SECRET_NAMES:
        return (
            "a secret must not stand in settings: they are recorded with every run",
            "log in with `hf auth login`, or set HF_TOKEN in the environment",
        )
    section, dot, rest = name.partition(".")
    if dot and section not in SECTIONS:
        guess = nearest(section, SECTIONS)
        known = f"did you mean {guess}?" if guess else f"sections: {', '.join(_SHORT_SECTIONS)}"
        return (
            f"there is no section {excerpt(section, 40)!r}",
            f"{known}; a setting may also stand without one: {excerpt(rest, 40)}",
        )
    if "." in rest:
        return "sections do not nest", "write section.setting, or the setting alone"
    if name in SECTIONS and name not in Settings.model_fields:
        return "this is a section: it holds settings, not a value", f"write `{name}:` over them"
    guess = USUAL_NAMES.get(last.lower()) or _nearest_setting(last)
    see = "`lorafit config show` lists all settings"
    return "there is no such setting", f"did you mean {guess}?" if guess else see


def is_misspelt(name: str) -> bool:
    """Return whether a name that means no setting is close to one that does.

    What is usual elsewhere is spelt as it is meant.
    """
    last = name.rpartition(".")[2]
    return last.lower() not in USUAL_NAMES and _nearest_setting(last) is not None


def _nearest_setting(name: str) -> str | None:
    return nearest(name, [*Settings.model_fields, *(a for a in ALIASES if "." not in a)])
