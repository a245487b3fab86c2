"""What must be equal for a resumed run to be the same run."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lorafit.errors import CheckpointError, UsageError
from lorafit.files import sha256_of
from lorafit.text import excerpt, nearest
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.run_folder.base_digest import digest_of_weights
from lorafit.training.run_folder.mismatch import Mismatch, Origins

# Settings that change the numbers of a run; those about records and places do not.
_SETTINGS = (
    "quantization", "double_quant", "attn_implementation", "kernels", "lora_r", "lora_alpha",
    "lora_dropout", "modules_to_save", "use_rslora", "use_dora", "prompt_template",
    "completion_template", "chat_template", "max_length", "train_on_prompt", "validation_split",
    "learning_rate", "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm",
    "label_smoothing_factor", "seed", "packing",
)  # fmt: skip
_METHOD_SETTINGS = ("method", "num_generations", "max_completion_length", "temperature", "beta")

# These decide the shapes of what a checkpoint holds: no wish makes the tensors fit.
_SHAPES = frozenset({"lora_r", "target_modules", "modules_to_save", "use_dora", "optim"})
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip

_WORLD_SIZE = "num_devices"
_SPELLINGS = {"world_size": _WORLD_SIZE, "num_processes": _WORLD_SIZE}

_BATCH = frozenset({_WORLD_SIZE, "micro_batch", "accumulation", "micro_batch_tokens"})

LENGTH = frozenset({"total_steps", "warmup_steps"})
"""What `--extend` may change."""


def fingerprint_of(plan: RunPlan) -> dict[str, Any]:
    """Return the facts that decide a run's numbers, by name, ready for JSON."""
    settings = plan.settings
    facts: dict[str, Any] = {name: getattr(settings, name) for name in _SETTINGS}
    facts["modules_to_save"] = list(settings.modules_to_save)
    assert plan.source.weights is not None
    facts |= {
        "target_modules": list(plan.model.targets.names),
        "micro_batch": plan.batch.per_device_train_batch_size,
        "accumulation": plan.batch.gradient_accumulation_steps,
        "num_devices": plan.batch.num_devices,
        # The sums of a step depend in their last bits on how it is split.
        "padding_free": plan.batching.attention.value is not None,
        "micro_batch_tokens": plan.batching.limits.tokens,
        "total_steps": plan.schedule.total_steps,
        "warmup_steps": plan.schedule.warmup_steps,
        "compute_dtype": plan.dtype.value,
        "device_kind": plan.device.kind,
        "data_sha256": plan.data.report.sha256,
        "num_train_rows": len(plan.data.train),
        "base_config_sha256": sha256_of(plan.source.path / "config.json"),
        "base_weights": [digest_of_weights(file) for file in plan.source.weights.files],
        "tokenizer_sha256": _digest_of_tokenizer(plan.source.path),
    }
    if settings.method != "sft":
        facts |= {name: getattr(settings, name) for name in _METHOD_SETTINGS}
        facts["reward_functions"] = plan.reward_file and list(plan.reward_file.names)
        facts["reward_file_sha256"] = plan.reward_file and plan.reward_file.sha256
    return facts


def _digest_of_tokenizer(folder: Path) -> dict[str, str]:
    files = (folder / name for name in _TOKENIZER_FILES)
    return {file.name: sha256_of(file) for file in files if file.is_file()}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two fingerprints: name to (then, now)."""
    names = sorted(before.keys() | now.keys())
    return {
        name: (before.get(name), now.get(name))
        for name in names
        if before.get(name) != now.get(name)
    }


def require_same_run(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    where: str,
    allowed: Collection[str] = (),
    origins: tuple[Origins, Origins] = (Origins(), Origins()),
) -> dict[str, tuple[Any, Any]]:
    """Compare the recorded fingerprint with the one of this command.

    Args:
        before: the fingerprint in run.json.
        now: that of this command.
        where: the run's folder.
        allowed: facts that may differ.
        origins: data and model of both, so that the refusal can name them.

    Returns:
        What differs and was allowed to: name to (then, now).

    Raises:
        CheckpointError: with a table of everything else that differs, in words.
    """
    differing = differences(before, now)
    allowed = {*allowed, *_implied(before, now, allowed)}
    refused = {name: values for name, values in differing.items() if name not in allowed}
    if not refused:
        return differing
    mismatch = Mismatch(refused, *origins)
    raise CheckpointError(
        f"this folder holds a run with {mismatch.subject()}; continuing would mix the two:\n"
        + mismatch.table(),
        where=where,
        hint=mismatch.hint() + _way_out(refused, now),
    )


def _implied(
    before: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]
) -> tuple[str, ...]:
    """Return what another number of devices changes by itself, where the batch stays the same."""
    parts = ("micro_batch", "accumulation", _WORLD_SIZE)
    rows = [[facts.get(name) for name in parts] for facts in (before, now)]
    if _WORLD_SIZE not in allowed or not all(isinstance(n, int) for row in rows for n in row):
        return ()
    effective, effective_now = (math.prod(int(str(n)) for n in row) for row in rows)
    if effective != effective_now:
        return ()
    # Tokens of a micro-batch follow from its rows.
    return ("micro_batch", "accumulation", "micro_batch_tokens")


def _way_out(refused: Mapping[str, tuple[Any, Any]], known: Collection[str]) -> str:
    if "total_steps" in refused and set(refused) <= LENGTH:
        then, now = refused["total_steps"]
        if isinstance(then, int) and now < then:
            return "\na run can be made longer, with --extend, but not shorter"
        return f"\n--extend {now}steps makes it longer, to that length in all"
    able = [name for name in refused if name in known and name not in _SHAPES]
    if len(able) < len(refused):
        return ""
    if _WORLD_SIZE in refused and set(able) <= _BATCH:
        able = ["world_size"]
    flags = " ".join(f"--allow-mismatch {name}" for name in able)
    return f"\n{flags} continues it all the same: not the run that it would have been"


def check_allowed(names: Collection[str], known: Collection[str]) -> frozenset[str]:
    """Return the names given to `--allow-mismatch`, each of them one that can be allowed.

    Raises:
        UsageError: a name is none of a fingerprint's, or decides the shape of what was saved.
    """
    names = [_SPELLINGS.get(name, name) for name in names]
    for name in names:
        if name not in known:
            near = nearest(name, known)
            raise UsageError(
                f"--allow-mismatch {excerpt(name)}: no such fact of a run",
                hint=f"did you mean {near}?" if near else f"one of {', '.join(sorted(known))}",
            )
        if name in _SHAPES:
            raise UsageError(
                f"--allow-mismatch {name}: it decides the shapes of the saved tensors, which would "
                "not fit",
                hint="start afresh in another --output-dir",
            )
    return frozenset(names)
