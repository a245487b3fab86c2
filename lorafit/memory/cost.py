"""How long a plan takes, as a model: enough to rank plans, not to predict seconds.

A frozen base needs 2 FLOPs a parameter and token forward and 2 backward (no weight gradients); a
checkpointed layer adds its forward once more. On top, every pass over a layer reads its weights,
however few tokens it takes (roofline: https://doi.org/10.1145/1498765.1498785), and launches its
kernels: this is why small micro-batches cost more a token.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

# Share of the peak that large matrix products reach, and of the bandwidth that reads reach: round
# figures. They scale every plan alike where all are bound by the same limit.
_PRODUCT_EFFICIENCY = 0.6
_BANDWIDTH_EFFICIENCY = 0.8
_LAUNCH_SECONDS = 5e-6
_LAUNCHES_A_LAYER = 80
"""Kernels of a layer's forward with adapters on all of its products, and for its backward."""


@dataclass(frozen=True)
class Workload:
    """What one optimizer step computes, however it is split."""

    num_layers: int
    layer_parameters: int
    """Parameters of one decoder layer's matrix products."""
    head_parameters: int
    """Parameters of the output layer."""
    attention_size: int
    """Width of all query heads together."""
    layer_bytes: float
    """Bytes moved to use one layer's weights once: their size, or what unpacking them takes."""
    row_lengths: tuple[int, ...]
    """Tokens of real rows; one entry of max_length where the data is not known."""


@dataclass(frozen=True)
class Throughput:
    """What a device can do at best."""

    matmul_flops: float
    """Floating point operations a second of dense matrix products in the compute dtype."""
    bandwidth: float
    """Bytes a second from memory."""


def launch_seconds(layer_passes: float) -> float:
    """Return the seconds that launching the kernels of so many passes through a layer takes."""
    return layer_passes * _LAUNCHES_A_LAYER * _LAUNCH_SECONDS


def expected_longest(row_lengths: Iterable[int], micro_batch: int) -> float:
    """Return the expected length of the longest of `micro_batch` rows drawn without replacement.

    All rows of a micro-batch are padded to it. With i of the n rows no longer than a length, the
    longest of m rows is no longer with probability C(i, m) / C(n, m). Fewer rows than a
    micro-batch repeat, so their longest is in it.
    """
    counts = Counter(row_lengths)
    n = counts.total()
    m = min(micro_batch, n)
    total, below, i = 0.0, 0.0, 0
    for length, count in sorted(counts.items()):
        i += count
        share = _share_of_draws(i, n, m)
        total += length * (share - below)
        below = share
    return total


def _share_of_draws(i: int, n: int, m: int) -> float:
    """Return C(i, m) / C(n, m); by logarithms, as the binomials of a data set overflow."""
    if i < m:
        return 0.0
    if i == n:
        return 1.0
    parts = (math.lgamma(i + 1), -math.lgamma(i - m + 1), -math.lgamma(n + 1))
    return math.exp(sum(parts) + math.lgamma(n - m + 1))


def step_seconds(
    work: Workload,
    device: Throughput,
    micro_batch: int,
    accumulation: int,
    checkpointed_layers: int,
    longest_row: float | None = None,
    *,
    end_to_end: bool = False,
) -> float:
    """Return the modelled seconds of an optimizer step on one device.

    Args:
        work: what is computed.
        device: what computes it.
        micro_batch: rows of a pass.
        accumulation: passes of a step.
        checkpointed_layers: layers whose forward runs twice.
        longest_row: `expected_longest` of the rows and the micro-batch, if it is known already.
        end_to_end: rows are not padded; a pass takes as many as have the tokens of `micro_batch`
            of the longest rows.
    """
    if end_to_end:
        total, longest = sum(work.row_lengths), max(work.row_lengths)
        mean = total / len(work.row_lengths)
        step_tokens = micro_batch * accumulation * mean
        accumulation = math.ceil(accumulation * mean / longest)
        tokens = step_tokens / accumulation
        attended = sum(length**2 for length in work.row_lengths) / total
    else:
        if longest_row is None:
            longest_row = expected_longest(work.row_lengths, micro_batch)
        tokens, attended = micro_batch * longest_row, longest_row
    # Products of queries with keys and of weights with values: 2 x 2 x length x width FLOPs a
    # token, of which the causal mask spares half. Backward has gradients for both factors.
    attention = 2 * attended * work.attention_size
    products = 2 * work.layer_parameters
    forwards = work.num_layers + checkpointed_layers
    flops = tokens * (
        forwards * (products + attention)
        + work.num_layers * (products + 2 * attention)
        + 2 * 2 * work.head_parameters
    )
    passes = forwards + work.num_layers
    compute = flops / (device.matmul_flops * _PRODUCT_EFFICIENCY)
    reads = passes * work.layer_bytes / (device.bandwidth * _BANDWIDTH_EFFICIENCY)
    launches = launch_seconds(passes)
    # Reads hide behind arithmetic only in part: their sum keeps larger passes a little ahead.
    return accumulation * max(compute + reads, launches)
