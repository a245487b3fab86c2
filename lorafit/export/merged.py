"""Merged weights as a model folder: staged, read back, compared, and only then put in place."""

import contextlib
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.data.chat import load_chat_format
from lorafit.data.encoding import encode_prompt
from lorafit.errors import AdapterError
from lorafit.export.plan import ExportPlan, copy_files
from lorafit.files import plain_os_errors, storage_errors, sync_file, sync_folder
from lorafit.hardware.precision import choose_compute_dtype
from lorafit.model.source import locate_model
from lorafit.model.tokenizer import tokenizer_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lorafit.model.merge import Drift

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_KEPT_FILES = (*TOKENIZER_FILES, "generation_config.json", "LICENSE", "LICENSE.txt", "NOTICE")
_MAX_PROBE_TOKENS = 96
_PROBES = (
    "The quick brown fox jumps over the lazy dog, and then it rests in the shade of a tree.",
    "Instruct: Explain why the sky is blue in two sentences.\nOutput:",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Question: A train travels 120 km in 1.5 hours. What is its average speed?\nAnswer:",
    "Premise: A man is playing a guitar on stage.\nHypothesis: A person makes music.\nLabel:",
    "In 1969, people walked on the Moon for the first time. Since then",
)
"""Texts of several kinds; the run's own sample prompts are added to them."""


@dataclass(frozen=True)
class MergedModel:
    """What was written, and how well it stands for base plus adapter."""

    folder: Path
    dtype: str
    drift: "Drift"
    was_quantized: bool


def export_merged(plan: ExportPlan, prompts: list[str], card: Callable[[str], str]) -> MergedModel:
    """Merge, write, read back, compare; the folder appears only if the comparison is good.

    Args:
        plan: what to export.
        prompts: the run's own prompts, compared on beside the built-in texts.
        card: makes README.md of the sentence that compares.

    Raises:
        AdapterError: the merged model does not do what base and adapter do together.
        StorageError: it cannot be written.
    """
    from lorafit.model.merge import log_probabilities, measure_drift

    tokenizer = tokenizer_of(plan.source)
    texts = [*_PROBES, *prompts]
    rows = [encode_prompt(tokenizer, text)[:_MAX_PROBE_TOKENS] for text in texts]
    rows = [row for row in rows if row]
    with staged(plan.output) as staging:
        adapted, base = _reference(plan, rows)
        dtype = _write_weights(plan, staging)
        _copy_companions(plan, staging, tokenizer)
        merged = log_probabilities(_load(plan, staging), rows)
        drift = measure_drift(adapted, base, merged)
        _require_agreement(drift)
        (staging / "README.md").write_text(card(describe_drift(drift)), encoding="utf-8")
    return MergedModel(plan.output, dtype, drift, plan.settings.quantization != "none")


def describe_drift(drift: "Drift") -> str:
    """Return the comparison as a sentence."""
    return (
        f"over {drift.num_tokens} tokens the merged model differs from base plus adapter by "
        f"{drift.divergence:.2g} nats a token (the adapter itself moves the base by "
        f"{drift.adapter_effect:.2g}), by at most {drift.max_logit:.2g} in a log probability, and "
        f"prefers the same next token {drift.same_choice:.1%} of the time"
    )


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a folder beside `output` that takes its name at the end, and is gone on failure.

    Raises:
        StorageError: it cannot be written.
    """
    staging = output.with_name(f".staging-{output.name}")
    shutil.rmtree(staging, ignore_errors=True)
    hint = "free space or choose another --output-dir"
    try:
        with storage_errors("the export could not be written", output, hint), plain_os_errors():
            staging.mkdir(parents=True)
            yield staging
            for path in staging.iterdir():
                sync_file(path)
            if output.is_dir():
                output.rmdir()  # empty: `require_new_folder` has seen to it
            os.replace(staging, output)
            sync_folder(output.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _reference(
    plan: ExportPlan, rows: list[list[int]]
) -> "tuple[list[torch.Tensor], list[torch.Tensor]]":
    """Return what base plus adapter, and the base alone, make of the texts: as in training."""
    import torch

    from lorafit.model.adapter import load_adapter
    from lorafit.model.build import load_base
    from lorafit.model.merge import log_probabilities

    device = torch.device(plan.device.torch_device)
    base = load_base(plan.settings, plan.source, _compute_dtype(plan), device)
    model = load_adapter(base, plan.adapter)
    adapted = log_probabilities(model, rows)
    with model.disable_adapter():
        alone = log_probabilities(model, rows)
    del base, model
    gc.collect()
    return adapted, alone


def _compute_dtype(plan: ExportPlan) -> "torch.dtype":
    import torch

    assert plan.source.weights is not None
    choice = choose_compute_dtype(
        plan.device,
        plan.settings.compute_dtype,
        plan.source.model_type,
        plan.source.weights.stored_dtype,
    )
    dtype: torch.dtype = getattr(torch, choice.value)
    return dtype


def _write_weights(plan: ExportPlan, staging: Path) -> str:
    """Write the merged weights, in the dtype that the base is stored in; return that dtype."""
    from transformers import GenerationConfig

    from lorafit.model.adapter import load_adapter
    from lorafit.model.merge import merge_adapter

    merged = merge_adapter(load_adapter(_base_to_merge(plan), plan.adapter))
    # Some models' own generation settings do not pass the check on saving; their file is copied.
    merged.generation_config = GenerationConfig()
    merged.config.use_cache = True
    merged.save_pretrained(staging, max_shard_size="4GB")
    return str(merged.dtype).removeprefix("torch.")


def _base_to_merge(plan: ExportPlan) -> "PreTrainedModel":
    """Load the base on the CPU in full: as stored, or what its quantized weights stand for."""
    import torch

    from lorafit.model.build import load_base

    assert plan.source.weights is not None
    stored: torch.dtype = getattr(torch, plan.source.weights.stored_dtype)
    base = load_base(plan.settings, plan.source, stored, torch.device("cpu"))
    if plan.settings.quantization == "none":
        return base
    plain: PreTrainedModel = base.dequantize(stored)
    if hasattr(plain.config, "quantization_config"):
        del plain.config.quantization_config
    return plain.to(stored)


def _copy_companions(plan: ExportPlan, staging: Path, tokenizer: Any) -> None:
    if not copy_files(plan.source.path, staging, ("generation_config.json",)):
        (staging / "generation_config.json").unlink(missing_ok=True)
    copy_files(plan.source.path, staging, _KEPT_FILES)
    if plan.row_kind == "messages":
        template = load_chat_format(plan.settings, tokenizer).template
        (staging / "chat_template.jinja").write_text(template, encoding="utf-8")


def _load(plan: ExportPlan, folder: Path) -> "PreTrainedModel":
    import torch

    from lorafit.model.build import load_base

    settings = plan.settings.model_copy(update={"quantization": "none"})
    device = torch.device(plan.device.torch_device)
    return load_base(settings, locate_model(str(folder)), _compute_dtype(plan), device).eval()


def _require_agreement(drift: "Drift") -> None:
    if drift.is_acceptable:
        return
    raise AdapterError(
        f"the merge loses {drift.lost_share:.0%} of what the adapter does: {describe_drift(drift)}",
        hint="nothing was written; use base and adapter together: lorafit export --no-merge",
    )
