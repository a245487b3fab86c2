"""How long a plan takes, as a model: enough to rank plans, not to predict seconds.

A pass over a micro-batch takes the larger of the time for its arithmetic and the time to read the
weights once (roofline: https://doi.org/10.1145/1498765.1498785), so that small micro-batches cost
more a token. A frozen base needs 2 FLOPs a parameter and token forward and 2 backward (no weight
gradients); a checkpointed layer adds its forward once more.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Share of the peak that large matrix products reach, and of the bandwidth that reads reach. Both
# scale every plan alike when all are bound by the same limit; they are round figures.
_PRODUCT_EFFICIENCY = 0.6
_BANDWIDTH_EFFICIENCY = 0.8


@dataclass(frozen=True)
class Workload:
    """What one optimizer step computes, however it is split."""

    num_layers: int
    layer_parameters: int
    """Parameters of one decoder layer's matrix products."""
    head_parameters: int
    """Parameters of the output layer."""
    hidden_size: int
    weight_bytes: int
    """Bytes of all frozen weights as they lie in memory."""
    row_lengths: tuple[int, ...]
    """Tokens of real rows; one entry of max_length where the data is not known."""


@dataclass(frozen=True)
class Throughput:
    """What a device can do at best."""

    matmul_flops: float
    """Floating point operations a second of dense 16-bit matrix products."""
    bandwidth: float
    """Bytes a second from memory."""


def expected_longest(row_lengths: Sequence[int], micro_batch: int) -> float:
    """Return the expected length of the longest of `micro_batch` rows drawn without replacement.

    All rows of a micro-batch are padded to it. E[max] = sum over the sorted lengths of
    length x (P(max index <= i) - P(max index <= i-1)), with P(max index <= i) = C(i, m) / C(n, m).
    """
    lengths = sorted(row_lengths)
    n = len(lengths)
    m = min(micro_batch, n)
    total, below = 0.0, 0.0
    for i in range(m, n + 1):
        # C(i, m) / C(n, m) by logarithms: the binomials overflow long before n is a data set.
        log_share = (
            math.lgamma(i + 1)
            - math.lgamma(i - m + 1)
            - math.lgamma(n + 1)
            + math.lgamma(n - m + 1)
        )
        share = math.exp(log_share)
        total += lengths[i - 1] * (share - below)
        below = share
    return total


def step_seconds(
    work: Workload,
    device: Throughput,
    micro_batch: int,
    accumulation: int,
    checkpointed_layers: int,
) -> float:
    """Return the modelled seconds of an optimizer step on one device."""
    tokens = micro_batch * expected_longest(work.row_lengths, micro_batch)
    length = tokens / micro_batch
    # Scores and weighted sum: 2 products of 2 x length x hidden FLOPs a token, half of them masked.
    attention = 2 * length * work.hidden_size
    layer_flops = tokens * (2 * work.layer_parameters + attention)
    passes = 2 * work.num_layers + checkpointed_layers
    flops = passes * layer_flops + 2 * tokens * 2 * work.head_parameters
    compute = flops / (device.matmul_flops * _PRODUCT_EFFICIENCY)
    reads = work.weight_bytes * passes / work.num_layers
    memory = reads / (device.bandwidth * _BANDWIDTH_EFFICIENCY)
    return accumulation * max(compute, memory)
