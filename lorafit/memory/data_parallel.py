"""What each of several processes takes beyond what it would take alone.

Under DDP every process holds the whole model, adapter and optimizer, as a process alone does; under
FSDP it holds its share of the base weights, which the trace knows. Either way the gradients of the
adapter are summed in place, through one buffer that is kept for the whole run; between GPUs NCCL
keeps buffers of its own, which no allocator of PyTorch counts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from lorafit.hardware.info import DeviceInfo
from lorafit.memory.estimate import Estimate, verdict_of, verdict_reason
from lorafit.units import MIB, format_bytes

Parallel = Literal["ddp", "fsdp"]

BUCKET_BYTES = 25 * MIB
"""Gradients are exchanged in pieces of this size: large enough for the links, and all the memory
that the exchange takes."""
NCCL_BYTES = 256 * MIB
"""Buffers of one communicator: NCCL_BUFFSIZE (4 MiB by NVIDIA's documentation) for sending and for
receiving on each of up to 32 channels. Derived, never measured."""
COMMUNICATORS = {"ddp": 1, "fsdp": 2}
"""Weights are gathered by a group of their own, beside the one that sums gradients."""
_SEGMENT_BYTES = 2 * MIB
"""CUDA's allocator reserves memory in multiples of this."""


def bucket_bytes(sizes: Sequence[int], itemsize: int = 4) -> int:
    """Return the bytes of the buffer that gradients go through: the largest piece.

    Args:
        sizes: elements of each trainable parameter, in model order, all of one dtype.
        itemsize: bytes of an element; adapters are float32.
    """
    largest = used = 0
    for size in sizes:
        if used and used + size * itemsize > BUCKET_BYTES:
            used = 0
        used += size * itemsize
        largest = max(largest, used)
    return largest


def with_exchange(
    estimate: Estimate,
    num_trainable: int,
    device: DeviceInfo,
    *,
    num_processes: int,
    parallelism: Parallel = "ddp",
) -> Estimate:
    """Return the estimate of one of several processes, given that of its own tensors.

    Args:
        estimate: what a process takes alone, with its share of the weights under FSDP.
        num_trainable: trainable parameters, in float32, none larger than `BUCKET_BYTES`.
        device: where each process runs.
        num_processes: how many there are.
        parallelism: what they do with the base weights.
    """
    room = min(4 * num_trainable, BUCKET_BYTES)
    is_cuda = device.kind == "cuda"
    reserved = -(-room // _SEGMENT_BYTES) * _SEGMENT_BYTES if is_cuda else room
    outside = COMMUNICATORS[parallelism] * NCCL_BYTES if is_cuda else 0
    peak = replace(
        estimate.peak,
        allocated_bytes=estimate.peak.allocated_bytes + room,
        reserved_bytes=estimate.peak.reserved_bytes + reserved,
        process_bytes=estimate.peak.process_bytes + reserved + outside,
    )
    parts = estimate.breakdown
    breakdown = {
        **parts,
        "gradient_bytes": parts["gradient_bytes"] + room,
        "fragmentation_bytes": parts["fragmentation_bytes"] + reserved - room,
        "context_bytes": parts["context_bytes"] + outside,
    }
    verdict = verdict_of(
        peak.process_bytes, device.usable_bytes, fits_by_releasing=estimate.verdict == "tight"
    )
    reason = f"each process takes {format_bytes(room)} more, to exchange gradients"
    if outside:
        reason += f", and about {format_bytes(outside)} for NCCL's buffers (derived, not measured)"
    return replace(
        estimate,
        peak=peak,
        breakdown=breakdown,
        verdict=verdict,
        reasons=(
            *estimate.reasons[:-1],
            reason,
            verdict_reason(verdict, peak.process_bytes, device),
        ),
        processes={
            "count": num_processes,
            "parallelism": parallelism,
            "weights_bytes": parts["weights_bytes"],
            "gathered_bytes": parts.get("gathered_bytes", 0),
            "exchange_bytes": room,
            "communicator_bytes": outside,
        },
    )


def num_shards_of(estimate: Estimate) -> int:
    """Return how many processes hold the base weights together; 1 where each holds all."""
    is_sharded = estimate.processes["parallelism"] == "fsdp"
    return int(estimate.processes["count"]) if is_sharded else 1
