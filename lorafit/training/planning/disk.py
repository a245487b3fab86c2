"""What a run leaves on disk, known before it starts."""

from dataclasses import dataclass
from pathlib import Path

from lorafit.config.schedule import Schedule
from lorafit.config.schema import Settings
from lorafit.files import free_bytes
from lorafit.training.checkpoints.checkpoint import list_checkpoints
from lorafit.units import format_bytes

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


def plan_disk(settings: Settings, num_trainable: int, schedule: Schedule) -> DiskPlan:
    """Return the bytes of checkpoints and adapter; `num_trainable` counts parameters."""
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
