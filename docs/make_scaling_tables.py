"""Write the tables of docs/SCALING.md: a simulation from traced memory and counted work.

python docs/make_scaling_tables.py [--check]

Nothing here was measured on a cluster. What a step computes, sends and holds is counted; how fast
devices and links are is assumed, and every assumption stands on the page.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.architecture import read_architecture
from lorafit.memory.closed_form import describe_run, num_trained_parameters
from lorafit.memory.data_parallel import BUCKET_BYTES, with_exchange
from lorafit.memory.planner import estimate_with_cache
from lorafit.model.architectures import bundled_config
from lorafit.model.libraries import prepare_libraries
from lorafit.report.flops import count_step_flops, find_peak_flops
from lorafit.units import GIB

PAGE = Path(__file__).parent / "SCALING.md"
BEGIN, END = "<!-- tables: generated -->", "<!-- tables: end -->"
NUM_DEVICES = (1, 8, 64, 512)
PER_NODE = 8
SUPERVISED_SHARE = 0.5
"""Of the tokens have a loss: the output layer is computed for those only."""
UTILIZATION = 0.40
"""Of the vendor's dense 16-bit figure reached by the products of a step."""
HOP_SECONDS = 20e-6
"""Between nodes, for a message of no size; in a node a tenth of it."""
HOST_EXCHANGES = 4
"""Small agreements a step over the hosts: memory, loss, stop, and one to spare."""


class Link(NamedTuple):
    """A machine of eight GPUs: bytes a second that each of them sends."""

    key: str
    name: str
    inside: float
    outside: float


class Work(NamedTuple):
    """What every device does in a step, the same at any number of them."""

    model: str
    name: str
    rows: int
    max_length: int
    accumulation: int


LINKS = (
    Link("a100-80gb", "A100 80 GB, NVLink 3, 200 Gbit/s a GPU", 300e9 * 0.8, 25e9 * 0.8),
    Link("h100", "H100 80 GB, NVLink 4, 400 Gbit/s a GPU", 450e9 * 0.8, 50e9 * 0.8),
)
WORKS = (
    Work("microsoft/phi-2", "Phi-2", 4, 1024, 4),
    Work("mistralai/Mistral-7B-v0.1", "Mistral-7B", 4, 2048, 2),
    Work("meta-llama/Llama-3.1-70B", "Llama-3.1-70B", 1, 2048, 8),
)


class Simulated(NamedTuple):
    """One step of one device among many."""

    seconds: float
    bytes_held: float
    fits: bool


class Step(NamedTuple):
    """What a step of a device takes, counted once for a model and a kind of device."""

    tokens: int
    micro_steps: int
    compute_seconds: float
    base_bytes: float
    layer_bytes: float
    gradient_bytes: float
    peak_flops: float
    alone_bytes: float
    whole_bytes: float
    """In a process among others that holds the whole model."""
    sharded_bytes: Mapping[int, float]
    """In one that holds its share of the base weights, by the number of processes."""
    capacity_bytes: float


def count(work: Work, link: Link) -> Step:
    """Count a step: operations, bytes to exchange, traced memory."""
    settings = Settings(
        model=work.model, per_device_train_batch_size=work.rows, max_length=work.max_length,
        gradient_accumulation_steps=work.accumulation, gradient_checkpointing=True,
        checkpointed_layers=None, torch_compile=False, lora_r=16, lora_dropout=0.05,
        compute_dtype="bfloat16",
    )  # fmt: skip
    config = bundled_config(work.model)
    assert config is not None
    device = planned_device(link.key)
    arch = read_architecture(config)
    trained = num_trained_parameters(describe_run(settings, config, device))
    peak = find_peak_flops(device, "bfloat16")
    assert peak is not None
    tokens = work.rows * work.max_length * work.accumulation
    flops = count_step_flops(settings, config, trained).of(tokens, int(tokens * SUPERVISED_SHARE))
    alone = estimate_with_cache(settings, config, device)
    whole = with_exchange(alone, trained, device, num_processes=PER_NODE)
    sharded = {
        devices: with_exchange(
            estimate_with_cache(settings, config, device, devices), trained, device,
            num_processes=devices, parallelism="fsdp",
        )
        for devices in NUM_DEVICES
        if devices > 1
    }  # fmt: skip
    return Step(
        tokens=tokens,
        micro_steps=work.accumulation,
        compute_seconds=flops / (peak.value * UTILIZATION),
        base_bytes=2.0 * arch.num_parameters,
        layer_bytes=2.0 * (arch.layer_linear_weights + arch.layer_other_parameters),
        gradient_bytes=4.0 * trained,
        peak_flops=peak.value,
        alone_bytes=alone.peak.process_bytes,
        whole_bytes=whole.peak.process_bytes,
        sharded_bytes={count: found.peak.process_bytes for count, found in sharded.items()},
        capacity_bytes=device.usable_bytes,
    )


def gather_seconds(num_bytes: float, devices: int, link: Link) -> float:
    """Return the time in which every device gets `num_bytes` of which each holds its share.

    Between nodes each of the eight GPUs fetches an eighth; inside, the other seven eighths.
    """
    inside = min(devices, PER_NODE)
    nodes = max(1, devices // PER_NODE)
    return (
        num_bytes * (inside - 1) / inside / link.inside
        + num_bytes / inside * (nodes - 1) / nodes / link.outside
        + hops(devices)
    )


def hops(devices: int) -> float:
    """Return the time of an exchange of no size, in rounds that double who has heard."""
    inside = min(devices, PER_NODE)
    nodes = max(1, devices // PER_NODE)
    return HOP_SECONDS * (math.log2(nodes) + 0.1 * math.log2(inside))


def simulate_ddp(step: Step, devices: int, link: Link) -> Simulated:
    """Simulate what lorafit does: a step on each device, then one exchange of gradients."""
    if devices == 1:
        return Simulated(
            step.compute_seconds, step.alone_bytes, step.alone_bytes <= step.capacity_bytes
        )
    pieces = math.ceil(step.gradient_bytes / BUCKET_BYTES)
    # A sum is a scatter and a gather of the same size.
    exchange = 2 * gather_seconds(step.gradient_bytes, devices, link)
    exchange += 2 * (pieces - 1) * hops(devices) + HOST_EXCHANGES * 2 * hops(devices)
    return Simulated(
        step.compute_seconds + exchange, step.whole_bytes, step.whole_bytes <= step.capacity_bytes
    )


def simulate_fsdp(step: Step, devices: int, link: Link) -> Simulated:
    """Simulate sharded base weights, which each micro-batch gathers forward and backward.

    The next layer is fetched while one is computed; only the first of each pass is waited for.
    """
    if devices == 1:
        return simulate_ddp(step, 1, link)
    passes = 2 * step.micro_steps
    gathering = passes * gather_seconds(step.base_bytes, devices, link)
    waiting = passes * gather_seconds(step.layer_bytes, devices, link)
    gradients = 2 * gather_seconds(step.gradient_bytes, devices, link)
    held = step.sharded_bytes[devices]
    seconds = max(step.compute_seconds, gathering) + waiting + gradients
    return Simulated(seconds, held, held <= step.capacity_bytes)


def table(work: Work, link: Link) -> list[str]:
    """Return the table of a model on a kind of machine."""
    step = count(work, link)
    ideal = step.tokens / step.compute_seconds
    lines = [
        f"### {work.name} on {link.name}",
        "",
        f"A device takes {work.rows} x {work.max_length} tokens x {work.accumulation} "
        f"micro-batches a step; it sends {step.gradient_bytes / 2**20:,.0f} MiB of gradients. "
        f"Sharded, it fetches {step.base_bytes / GIB:,.1f} GiB of weights {2 * step.micro_steps} "
        "times a step. Memory is traced. Assumed: "
        f"{UTILIZATION:.0%} of {step.peak_flops / 1e12:,.0f} TFLOP/s, "
        f"{link.inside / 1e9:g} GB/s inside a node and {link.outside / 1e9:g} GB/s between nodes.",
        "",
        "| GPUs | effective batch | DDP tokens/s | DDP efficiency | DDP GiB a GPU | FSDP tokens/s "
        "| FSDP efficiency | FSDP GiB a GPU |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for devices in NUM_DEVICES:
        cells = [str(devices), f"{work.rows * work.accumulation * devices:,}"]
        for simulated in (simulate_ddp(step, devices, link), simulate_fsdp(step, devices, link)):
            rate = devices * step.tokens / simulated.seconds
            held = f"{simulated.bytes_held / GIB:.1f}"
            cells += (
                [f"{rate:,.0f}", f"{rate / (devices * ideal):.1%}", held]
                if simulated.fits
                else ["-", "-", f"{held}: too much"]
            )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def render(page: str) -> str:
    """Return the page with its tables made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [line for link in LINKS for work in WORKS for line in table(work, link)]
    return f"{before}{BEGIN}\n\n{chr(10).join(lines)}\n{END}{after}"


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    prepare_libraries()
    page = PAGE.read_text("utf-8")
    made = render(page)
    if check:
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
