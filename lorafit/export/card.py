"""The model card: what was trained on what, how, and with which measured result."""

import re
from typing import Any

import yaml

from lorafit import __version__
from lorafit.config.fields import show_value
from lorafit.export.plan import DEFAULT_NAMES, ExportPlan, short_name
from lorafit.text import excerpt
from lorafit.units import format_bytes, format_count, format_duration

_SHOWN = (
    "lora_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "quantization", "max_length",
    "learning_rate", "lr_scheduler_type", "num_train_epochs", "optim", "weight_decay",
    "max_grad_norm", "seed",
)  # fmt: skip
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(plan: ExportPlan, drift: str | None = None) -> str:
    """Return README.md of a merged model, if `drift` says how it compares, or of an adapter."""
    is_merged = drift is not None
    sections = [
        _front_matter(plan, is_merged),
        _introduction(plan, is_merged),
        _usage(plan, is_merged),
        _table("Results", ("figure", "value"), _results(plan.record)),
        _table("Data", ("fact", "value"), _data(plan.record)),
        _table("Settings", ("setting", "value"), _settings(plan.record)),
        f"## Merge\n\nMerged weights were read back and compared: {drift}." if drift else "",
        _table("Versions", ("package", "version"), _versions(plan.record)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(plan: ExportPlan, is_merged: bool) -> str:
    base, data = plan.settings.model, plan.record.get("settings", {}).get("data", {}).get("value")
    facts: dict[str, Any] = {
        "library_name": "transformers" if is_merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lorafit", "lora", plan.source.model_type],
    }
    # A path of this machine would be a link to nowhere.
    if _HUB_ID.fullmatch(base) and short_name(base) == base:
        facts["base_model"] = base
        facts["base_model_relation"] = "finetune" if is_merged else "adapter"
    if isinstance(data, str) and _HUB_ID.fullmatch(data) and short_name(data) == data:
        facts["datasets"] = [data]
    return f"---\n{yaml.safe_dump(facts, sort_keys=True)}---"


def _introduction(plan: ExportPlan, is_merged: bool) -> str:
    base = _plain(short_name(plan.settings.model))
    what = (
        f"{base} with a LoRA adapter merged into it" if is_merged else f"A LoRA adapter for {base}"
    )
    text = f"# {_plain(_title(plan))}\n\n{what}, trained with lorafit {__version__}."
    if is_merged and plan.settings.quantization != "none":
        text += (
            f" The adapter was trained on the base in {plan.settings.quantization}; it is merged "
            "into what those quantized weights stand for, not into the original ones."
        )
    return text


def _title(plan: ExportPlan) -> str:
    """Return the export's own name, or the run's where the folder has only a default one."""
    output = plan.output.resolve()
    return output.parent.name if output.name in DEFAULT_NAMES else output.name


def _usage(plan: ExportPlan, is_merged: bool) -> str:
    lines: tuple[str, ...]
    if is_merged:
        lines = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("PATH_OR_ID", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained("PATH_OR_ID")',
        )
    else:
        lines = (
            "from peft import AutoPeftModelForCausalLM",
            "",
            'model = AutoPeftModelForCausalLM.from_pretrained("PATH_OR_ID")',
        )
    text = "## Use\n\n```python\n" + "\n".join(lines) + "\n```"
    template = plan.settings.prompt_template
    if template is not None:
        text += f"\n\nPrompts were written like this:\n\n{_fenced(template)}"
    elif plan.row_kind == "messages":
        text += "\n\nConversations are written with the chat template beside this file."
    return text


def _results(record: dict[str, Any]) -> list[tuple[str, str]]:
    results = record.get("results") or {}
    rows = [
        ("status", str(record.get("status", ""))),
        ("steps", _figure(results.get("steps"), ",.0f")),
        ("training loss, first", _figure(results.get("first_loss"), ".4f")),
        ("training loss, last", _figure(results.get("final_loss"), ".4f")),
        ("validation loss, last", _figure(results.get("validation_loss"), ".4f")),
        ("validation loss, best", _figure(results.get("best_validation_loss"), ".4f")),
        ("best at step", _figure(results.get("best_validation_step"), ",.0f")),
        ("tokens trained on", format_count(results["tokens"]) if results.get("tokens") else ""),
        ("tokens a second", _figure(results.get("tokens_per_second"), ",.0f")),
    ]
    peak, elapsed = results.get("peak_memory_bytes"), record.get("elapsed_seconds")
    rows.append(("peak memory", format_bytes(peak) if peak else ""))
    rows.append(("time", format_duration(elapsed) if elapsed else ""))
    device = record.get("plan", {}).get("device", {}).get("name", "")
    return [row for row in (*rows, ("device", str(device))) if row[1]]


def _figure(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""


def _data(record: dict[str, Any]) -> list[tuple[str, str]]:
    data = record.get("plan", {}).get("data") or {}
    if not data:
        return []
    training, counts = data.get("training") or {}, data.get("train_counts") or {}
    rows = [
        ("source", short_name(str(training.get("name", "")))),
        ("kind of rows", str(training.get("kind", ""))),
        ("training rows", _figure(counts.get("rows"), ",")),
        ("validation rows", _figure(data.get("validation_rows"), ",")),
        ("tokens", _figure(counts.get("tokens"), ",")),
        ("tokens learnt", _figure(counts.get("supervised_tokens"), ",")),
        ("SHA-256", str(data.get("sha256", ""))),
    ]
    return [row for row in rows if row[1]]


def _settings(record: dict[str, Any]) -> list[tuple[str, str]]:
    settings = record.get("settings") or {}
    batch = record.get("plan", {}).get("batch", {}).get("effective_batch_size")
    rows = [(name, show_value(settings[name]["value"])) for name in _SHOWN if name in settings]
    targets = record.get("plan", {}).get("model", {}).get("target_modules")
    rows += [("target_modules", ", ".join(map(str, targets)))] if targets else []
    return [*rows, ("effective batch", str(batch))] if batch else rows


def _versions(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), str(version)) for name, version in (record.get("versions") or {}).items()]


def _table(title: str, columns: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(columns)} |", "| --- | --- |"]
    lines += [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows]
    return f"## {title}\n\n" + "\n".join(lines)


def _plain(text: str) -> str:
    """Return text that means only itself in Markdown, on one line."""
    flat = excerpt(text, 300)
    return re.sub(r"([\\`*{}\[\]<>|#~]|(?<!\w)_|_(?!\w))", r"\\\1", flat)


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
