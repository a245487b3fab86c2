"""Whether several processes each hold the whole model (DDP) or share its frozen weights (FSDP)."""

from collections.abc import Callable

from lorafit.config.layers import Resolved
from lorafit.config.parallelism import why_not_sharded
from lorafit.config.schema import Settings
from lorafit.hardware.info import Choice, DeviceInfo
from lorafit.memory.closed_form import optimizer_bytes
from lorafit.memory.estimate import Estimate
from lorafit.units import format_bytes


def choose_parallelism(
    settings: Settings,
    num_devices: int,
    device: DeviceInfo,
    whole: Estimate,
    estimate_sharded: Callable[[], Estimate],
    memory_fraction: float = 1.0,
) -> tuple[Choice[str], Estimate]:
    """Return what the processes do with the base weights, and the memory that each then takes.

    Args:
        settings: those of the run, which `verify_parallelism` has passed.
        num_devices: processes.
        device: where each of them runs.
        whole: what one takes that holds the whole model.
        estimate_sharded: gives what one takes that holds its share.
        memory_fraction: share of the device that the run was planned for.
    """
    if num_devices == 1:
        return Choice("none", "one process"), whole
    if settings.parallelism == "ddp":
        return Choice("ddp", "ddp, as asked for: every process holds the whole model"), whole
    if settings.parallelism == "fsdp":
        reason = f"fsdp, as asked for: each process holds 1/{num_devices} of the base weights"
        return Choice("fsdp", reason), estimate_sharded()
    room = int(memory_fraction * device.usable_bytes)
    capacity = f"{format_bytes(room)} of {device.name}"
    takes = f"with the whole model a process takes {format_bytes(whole.peak.process_bytes)}"
    if whole.verdict != "exceeds" and whole.peak.process_bytes <= room:
        return Choice("ddp", f"ddp: {takes}, which the {capacity} hold"), whole
    obstacle = why_not_sharded(settings)
    if obstacle is not None:
        reason = f"ddp: {takes}, more than the {capacity}; weights are not shared, as {obstacle}"
        return Choice("ddp", reason), whole
    sharded = estimate_sharded()
    peak = format_bytes(sharded.peak.process_bytes)
    reason = (
        f"fsdp: {takes}, more than the {capacity}; with 1/{num_devices} of the base weights it "
        f"takes {peak}"
    )
    return Choice("fsdp", reason), sharded


def with_zero_stage(
    choice: Choice[str], resolved: Resolved, num_trainable: int, num_devices: int
) -> Choice[str]:
    """Return the choice with what it is to the ZeRO stage that a launcher was configured for.

    Stage 1 shares the optimizer's state among the processes, stage 2 the gradients too, stage 3
    all weights. What is trained has little of the first two, and lies whole in every process: the
    reason says how much more that is.

    Args:
        choice: what the processes do with the base weights.
        resolved: the settings of the run.
        num_trainable: trainable parameters, with gradients in float32.
        num_devices: processes.
    """
    stage = resolved.zero_stage
    if not stage:
        return choice
    whole = optimizer_bytes(resolved.settings, num_trainable)
    whole += 4 * num_trainable if stage > 1 else 0
    what = "optimizer state and gradients" if stage > 1 else "optimizer state"
    more = format_bytes(whole - whole // num_devices)
    return Choice(
        choice.value,
        f"{choice.reason}; ZeRO {stage} is done without DeepSpeed: the adapter's {what} stay "
        f"whole, which is {more} more in each process",
    )
