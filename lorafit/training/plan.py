"""Everything that is decided before a weight is read: what `train` prints, refuses and records."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.config.batch import BatchPlan, resolve_batch
from lorafit.config.parallelism import verify_parallelism
from lorafit.config.resolve import Resolved
from lorafit.config.schedule import Schedule, plan_schedule
from lorafit.config.schema import Settings
from lorafit.data.load import TrainingData, load_training_data
from lorafit.data.packing import Packing, pack_rows
from lorafit.data.progress import Tell, tell_nobody
from lorafit.data.rl_rows import MethodData, load_method_data
from lorafit.data.sources import resolve_source
from lorafit.data.tokenize import check_max_length
from lorafit.errors import UsageError
from lorafit.hardware.capabilities import effective_torch_compile, verify_supported
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.hardware.precision import choose_compute_dtype
from lorafit.memory.data_parallel import with_exchange
from lorafit.memory.estimate import Estimate
from lorafit.memory.planner import FittedPlan, nearest_fitting
from lorafit.model.source import ModelSource, locate_model, read_config
from lorafit.model.tokenizer import PadToken, choose_pad_token, tokenizer_of
from lorafit.training.batching import Batching, plan_batching
from lorafit.training.checkpoint import require_disk_space
from lorafit.training.disk import DiskPlan, plan_disk
from lorafit.training.fit import (
    estimate_sharded_run,
    fit_to_memory,
    fit_warnings,
    model_config,
    require_fit,
    wants_planner,
)
from lorafit.training.parallelism import choose_parallelism
from lorafit.training.rl.memory import estimate_method_run, fit_method
from lorafit.training.rl.prepare import prepare_method
from lorafit.training.rl.rewards import RewardFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafit.model.build import ModelSummary


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
    parallelism: Choice[str]
    """What several processes do with the base weights: `ddp` or `fsdp`; `none` of one."""
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
    def is_sharded(self) -> bool:
        """Whether each process holds only its share of the base weights."""
        return self.parallelism.value == "fsdp"

    @property
    def compiles_model(self) -> bool:
        """Whether the model is compiled as a whole.

        Of lean layers only the elementwise functions are, see model/lean/fusion; and weights that
        come and go would end every compiled piece at every layer.
        """
        lean = self.model.lean_layers.value
        return self.torch_compile.value and not lean and not self.is_sharded

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
            "parallelism": self.parallelism.value,
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
        if self.batch.num_devices > 1:
            reasons["parallelism"] = self.parallelism.reason
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
    tell: Tell = tell_nobody,
) -> RunPlan:
    """Decide a whole run: reads configuration, tokenizer and data, but no weights.

    The plan of a run that does not fit is returned all the same, to be shown;
    `RunPlan.require_fit` refuses it. `num_devices` devices like this one share each step; `tell`
    hears how far a large data file is.

    Raises:
        LorafitError: anything about the run that can be known beforehand is wrong.
    """
    _require_data(resolved.settings)
    resolved, reward_file = prepare_method(resolved, num_devices)
    settings = resolved.settings
    verify_supported(device, settings)
    verify_parallelism(resolved, num_devices)
    batch = resolve_batch(resolved, num_devices)
    # A file that is not there is found before gigabytes of a model are downloaded.
    _verify_data_files(settings)
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
    data = _load_data(settings, tokenizer, tell)
    packing = _pack(settings, data) if settings.packing else None
    unit_lengths = _unit_lengths(data, packing)
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
    disk = plan_disk(settings, model.num_trainable_parameters, schedule)
    require_disk_space(Path(settings.output_dir), disk.missing_bytes, disk.free_bytes)
    parallelism, estimate = _estimate(
        settings,
        batch,
        source,
        device,
        max(unit_lengths),
        model.num_trainable_parameters,
        # What the planner found was to leave some memory free.
        memory_fraction=1.0 if planner is None else settings.memory_fraction,
    )
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
        parallelism=parallelism,
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


def _require_data(settings: Settings) -> None:
    if settings.data is None:
        raise UsageError(
            "no training data was given",
            hint="add --data FILE (JSONL, JSON, CSV, Parquet) or --data owner/name from the hub",
        )


def _verify_data_files(settings: Settings) -> None:
    for name in (settings.data, settings.validation_data):
        if name is not None:
            resolve_source(name, settings.data_split)


def _load_data(
    settings: Settings, tokenizer: "PreTrainedTokenizerBase", tell: Tell
) -> TrainingData:
    if settings.method == "sft":
        return load_training_data(settings, tokenizer, tell)
    return load_method_data(settings, tokenizer)


def _unit_lengths(data: TrainingData, packing: Packing | None) -> Sequence[int]:
    """Return the tokens of each of what the effective batch counts: rows, or bins of rows."""
    if isinstance(data, MethodData):
        return list(data.lengths)
    return packing.tokens if packing is not None else data.train.lengths


def _pack(settings: Settings, data: TrainingData) -> Packing:
    return pack_rows(data.train.lengths, settings.max_length, settings.seed)


def _estimate(
    settings: Settings,
    batch: BatchPlan,
    source: ModelSource,
    device: DeviceInfo,
    longest: int,
    num_trainable: int,
    *,
    memory_fraction: float,
) -> tuple[Choice[str], Estimate]:
    """Return what the processes do with the base weights, and the memory that each then takes.

    Args:
        settings: those of the run.
        batch: how its steps are split, and over how many devices.
        source: the base model.
        device: what each process runs on.
        longest: tokens of the longest row, or bin of rows.
        num_trainable: parameters of the adapter.
        memory_fraction: share of the device that the run was planned for.
    """
    whole = estimate_method_run(settings, batch, source, device, longest)
    if batch.num_devices > 1:
        whole = with_exchange(whole, num_trainable, device, num_processes=batch.num_devices)
    return choose_parallelism(
        settings,
        batch.num_devices,
        device,
        whole,
        lambda: estimate_sharded_run(settings, batch, source, device, longest, num_trainable),
        memory_fraction,
    )
