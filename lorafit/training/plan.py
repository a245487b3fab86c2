"""Everything that is decided before a weight is read: what `train` prints, refuses and records."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.config.batch import BatchPlan, resolve_batch
from lorafit.config.resolve import Resolved
from lorafit.config.schedule import Schedule, plan_schedule
from lorafit.config.schema import Settings
from lorafit.data.load import TrainingData, load_training_data
from lorafit.data.packing import Packing, pack_rows
from lorafit.data.rl_rows import MethodData, load_method_data
from lorafit.data.sources import resolve_source
from lorafit.data.tokenize import check_max_length
from lorafit.errors import UsageError
from lorafit.files import free_bytes
from lorafit.hardware.capabilities import effective_torch_compile, verify_supported
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.hardware.precision import choose_compute_dtype
from lorafit.memory.data_parallel import with_exchange
from lorafit.memory.estimate import Estimate
from lorafit.memory.planner import FittedPlan, nearest_fitting
from lorafit.model.source import ModelSource, locate_model, read_config
from lorafit.model.tokenizer import PadToken, choose_pad_token, tokenizer_of
from lorafit.training.batching import Batching, plan_batching
from lorafit.training.checkpoint import list_checkpoints, require_disk_space
from lorafit.training.fit import (
    fit_to_memory,
    fit_warnings,
    model_config,
    require_fit,
    wants_planner,
)
from lorafit.training.rl.memory import estimate_method_run, fit_method
from lorafit.training.rl.prepare import prepare_method
from lorafit.training.rl.rewards import RewardFile
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafit.model.build import ModelSummary

# Bytes of optimizer state a trainable parameter: AdamW keeps two fp32 moments.
_OPTIMIZER_BYTES = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "paged_adamw_32bit": 8.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "sgd": 0.0,
    "adafactor": 0.1,
}
_DISK_SHARE = 0.8
"""Share of the free disk that a run may take without a warning."""


@dataclass(frozen=True)
class DiskPlan:
    """Bytes that the run leaves on disk, against those that are free."""

    checkpoint_bytes: int
    num_kept: int
    """Checkpoints on disk at the same time, one being written included."""
    num_written: int
    """Checkpoints over the whole run."""
    adapter_bytes: int
    free_bytes: int
    present_bytes: int = 0
    """Bytes of checkpoints that an earlier attempt left in the folder: they count among those
    that are needed, and are not free."""

    @property
    def needed_bytes(self) -> int:
        """Bytes on disk at the fullest moment."""
        return self.checkpoint_bytes * self.num_kept + self.adapter_bytes

    @property
    def missing_bytes(self) -> int:
        """Bytes that have to be free for it."""
        return max(0, self.needed_bytes - self.present_bytes)

    @property
    def unlimited_bytes(self) -> int:
        """Bytes that the run would leave without save_total_limit."""
        return self.checkpoint_bytes * self.num_written + self.adapter_bytes

    def warnings(self) -> list[str]:
        """Return what is narrow about it, as sentences."""
        if self.missing_bytes <= _DISK_SHARE * self.free_bytes:
            return []
        return [
            f"the disk is nearly full: checkpoints and adapter take "
            f"{format_bytes(self.missing_bytes)} of the {format_bytes(self.free_bytes)} that are "
            "free; --save-total-limit and --save-steps change that"
        ]


@dataclass(frozen=True)
class RunPlan:
    """A run, decided; `reasons` says why of every automatic choice."""

    resolved: Resolved
    device: DeviceInfo
    source: ModelSource
    tokenizer: "PreTrainedTokenizerBase"
    pad: PadToken
    model: "ModelSummary"
    dtype: Choice[str]
    torch_compile: Choice[bool]
    data: TrainingData
    batch: BatchPlan
    batching: Batching
    schedule: Schedule
    disk: DiskPlan
    estimate: Estimate
    planner: FittedPlan | None = None
    """How micro-batch and checkpointing were searched for, where they were."""
    reward_file: RewardFile | None = None
    """The reward functions of grpo: read, not run."""
    allows_oom_attempt: bool = False
    warnings: tuple[str, ...] = field(default=())

    @property
    def settings(self) -> Settings:
        """The validated settings."""
        return self.resolved.settings

    @property
    def eval_batch_size(self) -> int:
        """Rows of a validation batch."""
        settings = self.settings
        return settings.per_device_eval_batch_size or self.batching.eval_rows

    def require_fit(self) -> None:
        """Refuse the run if it would run out of memory.

        Raises:
            MemoryFitError: it would, and nobody asked to try it all the same.
        """
        if self.allows_oom_attempt or self.estimate.verdict != "exceeds":
            return
        if self.settings.method != "sft":
            require_fit(self.estimate, self.device, "--fit")
        # A search costs seconds: only where it is needed.
        alternative = nearest_fitting(
            self.settings,
            model_config(self.source),
            self.device,
            self.batch.effective_batch_size,
            num_devices=self.batch.num_devices,
        )
        require_fit(self.estimate, self.device, alternative)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan for run.json and `--dry-run --json`."""
        return {
            "device": asdict(self.device),
            "model": {
                "name": self.source.name,
                "revision": self.source.revision,
                "model_type": self.source.model_type,
                "num_parameters": self.model.num_parameters,
                "num_trainable_parameters": self.model.num_trainable_parameters,
                "trainable_by_module": self.model.trainable_by_module,
                "target_modules": list(self.model.targets.names),
            },
            "batch": {
                **asdict(self.batch),
                "padding_free": self.batching.attention.value is not None,
                "micro_batch_tokens": self.batching.limits.tokens,
                "num_bins": len(self.batching.packing.bins) if self.batching.packing else None,
            },
            "schedule": {
                **asdict(self.schedule),
                "peak_learning_rate": self.settings.learning_rate,
            },
            "data": self.data.report.as_dict(),
            "disk": {
                **asdict(self.disk),
                "needed_bytes": self.disk.needed_bytes,
                "unlimited_bytes": self.disk.unlimited_bytes,
            },
            "memory": {
                **self.estimate.document()["peak"],
                "breakdown": self.estimate.breakdown,
                "capacity_bytes": self.estimate.capacity_bytes,
                "headroom_bytes": self.estimate.headroom_bytes,
                "verdict": self.estimate.verdict,
                "calibrated": self.estimate.calibrated,
            },
            "compute_dtype": self.dtype.value,
            "torch_compile": self.torch_compile.value,
            "reasons": self.reasons(),
            "warnings": list(self.warnings),
        }

    def reasons(self) -> dict[str, str]:
        """Return the reason of every automatic choice."""
        reasons = {
            "device": self.device.reason,
            "batch": self.batch.reason,
            **self.batching.reasons(),
            "steps": self.schedule.total_reason,
            "warmup": self.schedule.warmup_reason,
            "compute_dtype": self.dtype.reason,
            "torch_compile": self.torch_compile.reason,
            "target_modules": self.model.targets.reason,
            "padding": self.pad.reason,
            "loss": self.model.chunked_loss.reason,
            "layers": self.model.lean_layers.reason,
            "memory": self.estimate.reasons[-1],
            **({"planner": self.planner.reason} if self.planner is not None else {}),
        }
        if self.settings.method != "sft":
            reasons["method"] = self.estimate.reasons[-2]
        if self.resolved.row is not None:
            reasons["hardware_row"] = self.resolved.row.reason
        return reasons


def plan_run(
    resolved: Resolved,
    device: DeviceInfo,
    *,
    fit: bool = False,
    allow_oom_attempt: bool = False,
    num_devices: int = 1,
) -> RunPlan:
    """Decide a whole run: reads configuration, tokenizer and data, but no weights.

    The plan of a run that does not fit is returned all the same, to be shown;
    `RunPlan.require_fit` refuses it. `num_devices` devices like this one share each step.

    Raises:
        LorafitError: anything about the run that can be known beforehand is wrong.
    """
    settings = resolved.settings
    if settings.data is None:
        raise UsageError(
            "no training data was given",
            hint="add --data FILE (JSONL, JSON, CSV, Parquet) or --data owner/name from the hub",
        )
    resolved, reward_file = prepare_method(resolved, num_devices)
    settings = resolved.settings
    verify_supported(device, settings)
    batch = resolve_batch(resolved, num_devices)
    # A file that is not there is found before gigabytes of a model are downloaded.
    for name in (settings.data, settings.validation_data):
        if name is not None:
            resolve_source(name, settings.data_split)
    source = locate_model(settings.model, settings.revision)
    assert source.weights is not None
    dtype = choose_compute_dtype(
        device, settings.compute_dtype, source.model_type, source.weights.stored_dtype
    )
    compiled = effective_torch_compile(
        device, settings.torch_compile, resolved.is_explicit("torch_compile")
    )
    check_max_length(settings, read_config(source))
    tokenizer = tokenizer_of(source)
    load = load_training_data if settings.method == "sft" else load_method_data
    data = load(settings, tokenizer)
    packing = _pack(settings, data) if settings.packing else None
    # What the effective batch counts: rows, or bins of rows.
    unit_lengths = packing.tokens if packing is not None else data.train.lengths
    if isinstance(data, MethodData):
        unit_lengths = list(data.lengths)
    planner = None
    if fit or wants_planner(resolved):
        plan_fit = fit_to_memory if settings.method == "sft" else fit_method
        resolved, planner = plan_fit(resolved, batch, source, device, unit_lengths)
        settings, batch = resolved.settings, resolve_batch(resolved, num_devices)
    schedule = plan_schedule(len(unit_lengths), batch, settings)

    # Seconds of imports, so only once everything quick has been found right.
    import torch

    from lorafit.model.attention import choose_block_attention
    from lorafit.model.build import summarize_model

    model = summarize_model(settings, source)
    attention = choose_block_attention(
        settings,
        read_config(source),
        loss=model.chunked_loss,
        device_kind=device.kind,
        compute_capability=device.compute_capability,
        dtype=getattr(torch, dtype.value),
        compiles=compiled.value,
    )
    disk = _plan_disk(settings, model.num_trainable_parameters, schedule)
    require_disk_space(Path(settings.output_dir), disk.missing_bytes, disk.free_bytes)
    estimate = estimate_method_run(settings, batch, source, device, max(unit_lengths))
    if num_devices > 1:
        estimate = with_exchange(estimate, model.num_trainable_parameters, device)
    return RunPlan(
        resolved=resolved,
        device=device,
        source=source,
        tokenizer=tokenizer,
        pad=choose_pad_token(tokenizer),
        model=model,
        dtype=dtype,
        torch_compile=compiled,
        data=data,
        batch=batch,
        batching=plan_batching(attention, batch, data.train.lengths, packing, device.kind),
        schedule=schedule,
        disk=disk,
        estimate=estimate,
        planner=planner,
        reward_file=reward_file,
        allows_oom_attempt=allow_oom_attempt,
        warnings=(
            *device.warnings,
            *resolved.warnings,
            *data.report.warnings,
            *disk.warnings(),
            *fit_warnings(estimate, device),
        ),
    )


def _pack(settings: Settings, data: TrainingData) -> Packing:
    return pack_rows(data.train.lengths, settings.max_length, settings.seed)


def _plan_disk(settings: Settings, num_trainable: int, schedule: Schedule) -> DiskPlan:
    run_dir = Path(settings.output_dir)
    validates = settings.validation_split > 0 or settings.validation_data is not None
    adapter_bytes = 4 * num_trainable
    written = -(-schedule.total_steps // settings.save_steps)
    return DiskPlan(
        checkpoint_bytes=int(num_trainable * (4 + _OPTIMIZER_BYTES[settings.optim])),
        # The newest, the best one, and the one that is being written.
        num_kept=min(written, settings.save_total_limit + 1 + validates),
        num_written=written,
        adapter_bytes=adapter_bytes,
        free_bytes=free_bytes(run_dir),
        present_bytes=sum(found.num_bytes for found in list_checkpoints(run_dir)),
    )
