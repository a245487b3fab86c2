"""The adapter as it is, with a card and the tokenizer: small, and for any copy of the base."""

from pathlib import Path

from lorafit.data.chat import load_chat_format
from lorafit.export.merged import TOKENIZER_FILES, staged
from lorafit.export.plan import ExportPlan, copy_files
from lorafit.model.tokenizer import tokenizer_of

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_adapter(plan: ExportPlan, card: str) -> Path:
    """Copy a verified adapter into a folder of its own.

    Raises:
        AdapterError: the adapter is damaged.
        StorageError: it cannot be written.
    """
    from lorafit.model.adapter import verify_adapter

    verify_adapter(plan.adapter)
    with staged(plan.output) as staging:
        copy_files(plan.adapter, staging, _ADAPTER_FILES)
        copy_files(plan.source.path, staging, TOKENIZER_FILES)
        if plan.row_kind == "messages":
            template = load_chat_format(plan.settings, tokenizer_of(plan.source)).template
            (staging / "chat_template.jinja").write_text(template, encoding="utf-8")
        (staging / "README.md").write_text(card, encoding="utf-8")
    return plan.output
