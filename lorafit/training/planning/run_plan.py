"""A run, decided: what `train` prints, refuses and records before a weight is read."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorafit.config.batch import BatchPlan
from lorafit.config.resolve import Resolved
from lorafit.config.schedule import Schedule
from lorafit.config.schema import Settings
from lorafit.data.load import TrainingData
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.memory.estimate import Estimate
from lorafit.memory.planner import FittedPlan, nearest_fitting
from lorafit.model.source import ModelSource
from lorafit.model.tokenizer import PadToken
from lorafit.training.planning.batching import Batching
from lorafit.training.planning.disk import DiskPlan
from lorafit.training.planning.fit import model_config, require_fit, verify_free_memory
from lorafit.training.rl.rewards import RewardFile
from lorafit.training.timing.duration import Duration, NotKnown, estimate_duration

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

    @property
    def predicted_peak_bytes(self) -> int:
        """The prediction of what the run's records measure as reserved memory.

        CUDA's counters do not know the context; elsewhere the whole process is measured.
        """
        peak = self.estimate.peak
        return peak.reserved_bytes if self.device.kind == "cuda" else peak.process_bytes

    @cached_property
    def duration(self) -> Duration | NotKnown:
        """How long the whole run takes, or why that is not known; measures a CPU's products."""
        return estimate_duration(self)

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

    def verify_free_memory(self) -> None:
        """Look at the memory that is free now, right before the model is loaded.

        Raises:
            MemoryFitError: other processes have taken what the run needs.
        """
        if not self.allows_oom_attempt:
            verify_free_memory(self.estimate, self.device)

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
            "duration": self.duration.as_dict(),
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
            "duration": self.duration.reason,
            **({"planner": self.planner.reason} if self.planner is not None else {}),
        }
        if self.batch.num_devices > 1:
            reasons["parallelism"] = self.parallelism.reason
        if self.settings.method != "sft":
            reasons["method"] = self.estimate.reasons[-2]
        if self.resolved.row is not None:
            reasons["hardware_row"] = self.resolved.row.reason
        return reasons
