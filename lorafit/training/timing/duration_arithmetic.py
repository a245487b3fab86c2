"""What a run takes at least and at most where none was measured: operations against a rate.

Everything here is a range between two round figures, the slower four to ten times the faster.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorafit.hardware.info import Choice
from lorafit.memory.architecture import Architecture, read_architecture
from lorafit.memory.cost import launch_seconds
from lorafit.report.flops import num_checkpointed_layers
from lorafit.training.planning.fit import model_config
from lorafit.training.timing.duration_work import Parts, RunWork

if TYPE_CHECKING:
    from lorafit.training.planning.run_plan import RunPlan

_GPU_SHARES = (0.15, 0.6)
"""Share of a GPU's best rate of products that training reaches. Nothing was measured: the upper end
is what the planner takes for large products, the lower one a quarter of it."""
_CPU_SHARES = {"lorafit": (0.3, 0.9), "stock": (0.08, 0.4)}
"""Of a CPU's, by kernels: half and one and a half times the 60 % that the lean layers reach with
the 10 M model of bench/throughput.py (2,254 tokens/s of 29 MFLOP, of 109 GFLOP/s); stock kernels,
whose padding and logits cost more operations, were 3.7 times slower there."""


@dataclass(frozen=True)
class Assumptions:
    """What one end of the range takes for granted."""

    share: float
    """Of the best rate of products."""
    launch_factor: float
    """Of the kernels' launches, which are all that a small model waits for."""
    token_factor: float
    """Of the launches of a token that is written: no kernel hides behind the one before."""
    disk_bytes_per_second: float
    startup_seconds: float
    """Without the weights."""
    ending_seconds: float
    """Verifying the adapter and writing the report."""


def assumptions_of(plan: "RunPlan") -> tuple[Assumptions, Assumptions]:
    """Return what the fast and the slow end of the range take for granted."""
    slow, fast = _GPU_SHARES
    if plan.device.kind == "cpu":
        slow, fast = _CPU_SHARES[plan.settings.kernels]
    return (
        Assumptions(fast, 1.0, 1.0, 2e9, 1.0, 0.2),
        Assumptions(slow, 4.0, 10.0, 2e8, 10.0, 5.0),
    )


def arithmetic_parts(
    plan: "RunPlan", work: RunWork, peak: Choice[float], assumed: Assumptions
) -> Parts:
    """Return the seconds of the parts of a run.

    Args:
        plan: the run.
        work: what of it is to be computed.
        peak: operations a second that a device does at best.
        assumed: the end of the range.
    """
    arch = read_architecture(model_config(plan.source))
    num_devices = plan.batch.num_devices
    rate = peak.value * num_devices * assumed.share
    passes = 2 * arch.num_layers + num_checkpointed_layers(plan.settings, arch.num_layers)
    launches = launch_seconds(passes * work.micro_batches / num_devices) * assumed.launch_factor
    weights = plan.source.weights
    loaded = weights.num_bytes if weights is not None else 0
    saved = work.num_saves * plan.disk.checkpoint_bytes + plan.disk.adapter_bytes
    return Parts(
        startup=assumed.startup_seconds + loaded / assumed.disk_bytes_per_second,
        steps=max(work.flops / rate, launches),
        validation=work.validation_flops / rate + _sampling_seconds(plan, arch, peak, assumed),
        saving=assumed.ending_seconds + saved / assumed.disk_bytes_per_second,
    )


def _sampling_seconds(
    plan: "RunPlan", arch: Architecture, peak: Choice[float], assumed: Assumptions
) -> float:
    """Return what the samples of a validation take: one pass a token, for all prompts together."""
    from lorafit.training.samples import MAX_NEW_TOKENS

    count = plan.settings.sample_prompts
    if count == 0 or plan.data.validation is None:
        return 0.0
    products = 2.0 * count * arch.num_parameters / (peak.value * assumed.share)
    launches = launch_seconds(arch.num_layers) * assumed.token_factor
    return MAX_NEW_TOKENS * max(products, launches)
