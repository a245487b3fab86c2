"""A run decided before a weight is read: from settings and a device to a `RunPlan`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lorafit.config.batch import BatchPlan, resolve_batch
from lorafit.config.parallelism import verify_parallelism
from lorafit.config.resolve import Resolved
from lorafit.config.schedule import plan_schedule
from lorafit.config.schema import Settings
from lorafit.data.load import TrainingData, load_training_data
from lorafit.data.packing import Packing, pack_rows
from lorafit.data.progress import Tell, tell_nobody
from lorafit.data.rl_rows import load_method_data
from lorafit.data.sources import resolve_source
from lorafit.data.tokenize import check_max_length
from lorafit.errors import DataError, UsageError
from lorafit.hardware.capabilities import effective_torch_compile, verify_supported
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.hardware.precision import choose_compute_dtype
from lorafit.memory.data_parallel import with_exchange
from lorafit.memory.estimate import Estimate
from lorafit.model.source import ModelSource, locate_model, read_config
from lorafit.model.tokenizer import choose_pad_token, tokenizer_of
from lorafit.training.checkpoints.checkpoint import require_disk_space
from lorafit.training.planning.batching import plan_batching
from lorafit.training.planning.disk import plan_disk
from lorafit.training.planning.fit import (
    estimate_sharded_run,
    fit_warnings,
    model_config,
    wants_planner,
)
from lorafit.training.planning.parallelism import choose_parallelism, with_zero_stage
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.rl.memory import estimate_method_run, fit_run
from lorafit.training.rl.prepare import prepare_method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafit.model.attention import BlockAttention


class _Rows(NamedTuple):
    """The data of a run, read."""

    data: TrainingData
    packing: Packing | None
    unit_lengths: Sequence[int]
    """Tokens of each of what the effective batch counts: rows, or bins of rows."""


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
    verify_supported(device, resolved.settings)
    verify_parallelism(resolved, num_devices)
    batch = resolve_batch(resolved, num_devices)
    # A file that is not there is found before gigabytes of a model are downloaded.
    _verify_data_files(resolved)
    source = locate_model(resolved.settings.model, resolved.settings.revision)
    dtype = _compute_dtype(device, resolved.settings, source)
    compiled = effective_torch_compile(
        device, resolved.settings.torch_compile, resolved.is_explicit("torch_compile")
    )
    check_max_length(resolved.settings, read_config(source))
    tokenizer = tokenizer_of(source)
    rows = _read_rows(resolved.settings, tokenizer, tell)
    planner = None
    if fit or wants_planner(resolved):
        config = model_config(source)
        resolved, planner = fit_run(resolved, batch, config, device, rows.unit_lengths)
        batch = resolve_batch(resolved, num_devices)
    settings = resolved.settings
    schedule = plan_schedule(len(rows.unit_lengths), batch, settings)

    # Seconds of imports, so only once everything quick has been found right.
    from lorafit.model.build import summarize_model

    model = summarize_model(settings, source)
    attention = _attention(settings, source, model.chunked_loss, device, dtype, compiled)
    disk = plan_disk(settings, model.num_trainable_parameters, schedule)
    require_disk_space(Path(settings.output_dir), disk.missing_bytes, disk.free_bytes)
    parallelism, estimate = _estimate(
        settings,
        batch,
        source,
        device,
        max(rows.unit_lengths),
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
        data=rows.data,
        batch=batch,
        batching=plan_batching(
            attention, batch, rows.data.train.lengths, rows.packing, device.kind
        ),
        schedule=schedule,
        disk=disk,
        estimate=estimate,
        parallelism=with_zero_stage(
            parallelism, resolved, model.num_trainable_parameters, num_devices
        ),
        planner=planner,
        reward_file=reward_file,
        allows_oom_attempt=allow_oom_attempt,
        warnings=(
            *device.warnings,
            *resolved.warnings,
            *rows.data.report.warnings,
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


def _verify_data_files(resolved: Resolved) -> None:
    settings = resolved.settings
    for setting in ("data", "validation_data"):
        name, origin = getattr(settings, setting), resolved.origins[setting]
        if name is None:
            continue
        try:
            resolve_source(name, settings.data_split)
        except DataError as problem:
            if origin.kind == "flag":
                raise
            # A file that names a file: both are needed to find the mistake.
            raise DataError(
                str(problem),
                where=f"{setting} ({origin.text})",
                hint=f"{problem.hint or 'check the path'}; --{setting.replace('_', '-')} FILE "
                "takes its place",
            ) from None


def _compute_dtype(device: DeviceInfo, settings: Settings, source: ModelSource) -> Choice[str]:
    assert source.weights is not None
    return choose_compute_dtype(
        device, settings.compute_dtype, source.model_type, source.weights.stored_dtype
    )


def _read_rows(settings: Settings, tokenizer: "PreTrainedTokenizerBase", tell: Tell) -> _Rows:
    if settings.method != "sft":
        method_data = load_method_data(settings, tokenizer)
        return _Rows(method_data, None, list(method_data.lengths))
    data = load_training_data(settings, tokenizer, tell)
    if not settings.packing:
        return _Rows(data, None, data.train.lengths)
    packing = pack_rows(data.train.lengths, settings.max_length, settings.seed)
    return _Rows(data, packing, packing.tokens)


def _attention(
    settings: Settings,
    source: ModelSource,
    chunked_loss: Choice[bool],
    device: DeviceInfo,
    dtype: Choice[str],
    compiled: Choice[bool],
) -> "Choice[BlockAttention | None]":
    """Return what computes attention over rows that go end to end, if anything can."""
    import torch

    from lorafit.model.attention import choose_block_attention

    return choose_block_attention(
        settings,
        read_config(source),
        loss=chunked_loss,
        device_kind=device.kind,
        compute_capability=device.compute_capability,
        dtype=getattr(torch, dtype.value),
        compiles=compiled.value,
    )


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
