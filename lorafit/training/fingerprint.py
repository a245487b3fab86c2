"""What must be equal for a resumed run to be the same run."""

from typing import Any

from lorafit.errors import CheckpointError
from lorafit.files import sha256_of
from lorafit.training.plan import RunPlan

# Settings that change the numbers of a run; those about records and places do not.
_SETTINGS = (
    "quantization", "double_quant", "attn_implementation", "kernels", "lora_r", "lora_alpha",
    "lora_dropout", "modules_to_save", "use_rslora", "use_dora", "prompt_template",
    "completion_template", "chat_template", "max_length", "train_on_prompt", "validation_split",
    "learning_rate", "lr_scheduler_type", "optim", "weight_decay", "max_grad_norm",
    "label_smoothing_factor", "seed",
)  # fmt: skip


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
        "total_steps": plan.schedule.total_steps,
        "warmup_steps": plan.schedule.warmup_steps,
        "compute_dtype": plan.dtype.value,
        "device_kind": plan.device.kind,
        "data_sha256": plan.data.report.sha256,
        "num_train_rows": len(plan.data.train),
        "base_config_sha256": sha256_of(plan.source.path / "config.json"),
        # Hashing 5 GB at every start is too slow: sizes tell other weights well enough here.
        "base_weight_bytes": [file.stat().st_size for file in plan.source.weights.files],
    }
    return facts


def require_same_run(before: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """Compare the recorded fingerprint with the one of this command.

    Raises:
        CheckpointError: with a table of everything that differs.
    """
    names = sorted(before.keys() | now.keys())
    differing = [name for name in names if before.get(name) != now.get(name)]
    if not differing:
        return
    width = max(len(name) for name in differing)
    rows = "\n".join(
        f"  {name:{width}}  then: {_short(before.get(name))}  now: {_short(now.get(name))}"
        for name in differing
    )
    raise CheckpointError(
        f"this folder holds a run with other settings; continuing would mix the two:\n{rows}",
        where=where,
        hint="use the settings of then to continue it, or another --output-dir to start afresh",
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
