"""Write the tables of docs/PHI2-README.md from Phi-2's real modules; `--check` only compares.

python docs/make_phi2_tables.py [--check] [--only TABLE]

The table `kept` takes about a minute: it traces training steps of Phi-2 on the `meta` device.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from page_tables import fill, write_or_compare
from transformers import PhiConfig, PhiForCausalLM

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.estimate import Estimate, estimate_memory
from lorafit.model.architectures import bundled_config
from lorafit.model.libraries import prepare_libraries
from lorafit.model.lora import DEFAULT_TARGETS
from lorafit.units import MIB

PAGE = Path(__file__).parent / "PHI2-README.md"
DEMO_RESULTS = Path(__file__).parents[1] / "bench" / "results" / "targets_on_demo.json"
MODEL = "microsoft/phi-2"
RANKS = (8, 16, 32, 64)
RANK = 16
ROWS, TOKENS = 4, 1024
CHOICES: dict[str, tuple[str, ...]] = {
    "`q_proj,v_proj`": ("q_proj", "v_proj"),
    "`q_proj,k_proj,v_proj,dense`": ("q_proj", "k_proj", "v_proj", "dense"),
    "`fc1,fc2`": ("fc1", "fc2"),
    "all six": DEFAULT_TARGETS["phi"],
}

# Bits a weight in NF4 with double quantization: 4, plus one 8-bit scale for 64 weights, plus one
# 32-bit scale for 256 of those (QLoRA, arXiv 2305.14314, section 3).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


@functools.cache
def phi2() -> PhiForCausalLM:
    """Return Phi-2 on the meta device, from the configuration that comes with lorafit."""
    with torch.device("meta"):
        return PhiForCausalLM(PhiConfig(**_config()))


def _config(**changes: int) -> dict[str, object]:
    config = bundled_config(MODEL)
    assert config is not None
    return {**config, **changes}


def module_table() -> list[str]:
    """Return a row for each module that holds weights; a layer's modules once, with their count."""
    model = phi2()
    rows = [
        "| module | how many | weight | parameters each | bf16 | NF4 |",
        "|---|---|---|---|---|---|",
    ]
    layers = len(model.model.layers)
    total_nf4 = 0.0
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or (".layers." in name and ".layers.0." not in name):
            continue
        count = layers if ".layers." in name else 1
        num = sum(parameter.numel() for parameter in own)
        shape = " x ".join(map(str, own[0].shape))
        quantized = isinstance(module, torch.nn.Linear) and name != "lm_head"
        nf4_bytes = num * 2.0
        if quantized:
            # The bias stays in 16 bit.
            nf4_bytes = module.weight.numel() * NF4_BITS / 8 + module.out_features * 2
        total_nf4 += count * nf4_bytes
        shown = name.replace("model.layers.0.", "layer: ").removeprefix("model.")
        rows.append(
            f"| `{shown}` | {count} | {shape} | {num:,} | {num * 2 / MIB:.1f} MiB "
            f"| {nf4_bytes / MIB:.1f} MiB |"
        )
    total = model.num_parameters()
    sums = f"**{total * 2 / MIB:,.0f} MiB** | **{total_nf4 / MIB:,.0f} MiB**"
    rows.append(f"| **all** | | | **{total:,}** | {sums} |")
    return rows


def lora_table() -> list[str]:
    """Return LoRA parameters by target and rank: r x (inputs + outputs) in each of the layers."""
    model = phi2()
    header = " | ".join(f"r = {rank}" for rank in RANKS)
    rows = [f"| target | {header} |", "|---|" + "---|" * len(RANKS)]
    layer = dict(model.model.layers[0].named_modules())
    layers = len(model.model.layers)
    totals = dict.fromkeys(RANKS, 0)
    for target in DEFAULT_TARGETS["phi"]:
        module = next(m for n, m in layer.items() if n.rpartition(".")[2] == target)
        counts = [layers * rank * (module.in_features + module.out_features) for rank in RANKS]
        for rank, count in zip(RANKS, counts, strict=True):
            totals[rank] += count
        rows.append(f"| `{target}` | " + " | ".join(f"{count:,}" for count in counts) + " |")
    rows.append("| **all six** | " + " | ".join(f"**{totals[r]:,}**" for r in RANKS) + " |")
    share = " | ".join(f"{totals[r] / model.num_parameters():.2%}" for r in RANKS)
    state = " | ".join(f"{totals[r] * 16 / MIB:,.0f} MiB" for r in RANKS)
    rows.append(f"| share of the model | {share} |")
    rows.append(f"| fp32 weights, gradients and AdamW state | {state} |")
    return rows


def flops_table() -> list[str]:
    """Return the FLOPs of one token in each module: of the frozen weight, and of its adapter.

    A product with n weights is 2n FLOPs. Backward takes as many for the gradient of the input;
    the adapter's own gradient takes as many again. The frozen weight has none.
    """
    rows = [
        f"| module | forward | backward | adapter of r = {RANK}, both | of the step |",
        "|---|---|---|---|---|",
    ]
    found: list[tuple[str, int, int, int]] = []
    layers = len(phi2().model.layers)
    for name, module in phi2().model.layers[0].named_modules():
        if isinstance(module, torch.nn.Linear):
            weights = module.in_features * module.out_features
            adapter = RANK * (module.in_features + module.out_features)
            found.append(
                (f"`{name}` x {layers}", *(2 * layers * weights,) * 2, 6 * layers * adapter)
            )
    attention = layers * 2 * 2 * phi2().config.hidden_size * TOKENS // 2
    found.append((f"attention, causal, {TOKENS} tokens", attention, 2 * attention, 0))
    output = phi2().lm_head.in_features * phi2().lm_head.out_features
    found.append(("`lm_head`", 2 * output, 2 * output, 0))
    total = sum(sum(parts) for _, *parts in found)
    for name, *parts in found:
        cells = [f"{part / 1e6:,.1f}" if part else "" for part in parts]
        rows.append(f"| {name} | {' | '.join(cells)} | {sum(parts) / total:.1%} |")
    sums = [sum(row[column] for row in found) for column in (1, 2, 3)]  # type: ignore[misc]
    cells = [f"**{part / 1e6:,.0f}**" for part in sums]
    rows.append(f"| **all, million FLOPs a token** | {' | '.join(cells)} | |")
    return rows


def kept_table() -> list[str]:
    """Return what a token of a layer keeps for backward, and the peak of a step, by targets."""
    rows = [
        "| targets | kept, stock | kept, lorafit | peak, stock | peak, lorafit "
        "| peak, lorafit, checkpointing |",
        "|---|---|---|---|---|---|",
    ]
    for name, targets in CHOICES.items():
        kept = [f"{_kept_bytes(kernels, targets) / 1024:.0f} KiB" for kernels in _KERNELS]
        peaks = [_peak(kernels, targets, False) for kernels in _KERNELS]
        peaks.append(_peak("lorafit", targets, True))
        rows.append(f"| {name} | {' | '.join([*kept, *peaks])} |")
    return rows


_KERNELS = ("stock", "lorafit")


def _kept_bytes(kernels: str, targets: tuple[str, ...]) -> float:
    """Return the activation bytes a token that one layer more adds to the peak of a step."""
    counts = (4, 5)
    saved = [
        _estimate(kernels, targets, False, num_hidden_layers=count).breakdown["activation_bytes"]
        for count in counts
    ]
    return (saved[1] - saved[0]) / (ROWS * TOKENS)


def _peak(kernels: str, targets: tuple[str, ...], checkpointing: bool) -> str:
    return f"{_estimate(kernels, targets, checkpointing).peak.allocated_bytes / 2**30:.1f} GiB"


def _estimate(
    kernels: str, targets: tuple[str, ...], checkpointing: bool, **changes: int
) -> Estimate:
    prepare_libraries()
    settings = Settings(
        model=MODEL,
        kernels=kernels,
        compute_dtype="bfloat16",
        lora_r=RANK,
        lora_dropout=0.05,
        target_modules=targets,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=1,
        max_length=TOKENS,
        gradient_checkpointing=checkpointing,
        torch_compile=False,
    )
    return estimate_memory(settings, _config(**changes), planned_device("a100-80gb"))


def demo_table() -> list[str]:
    """Return what the demo's task was learnt to with adapters on different modules."""
    if not DEMO_RESULTS.is_file():
        return ["Not measured yet."]
    runs = json.loads(DEMO_RESULTS.read_text(encoding="utf-8"))["runs"]
    rows = [
        "| targets | trained parameters | validation loss | accuracy | macro-F1 |",
        "|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        shown = name if name == "all six" else f"`{name}`"
        rows.append(
            f"| {shown} | {run['trainable_parameters']:,} | {run['validation_loss']:.3f} "
            f"| {run['accuracy']:.1%} | {run['macro_f1']:.3f} |"
        )
    problems, steps = (next(iter(runs.values()))[key] for key in ("problems", "steps"))
    return [*rows, "", f"{problems} held-out problems, {steps} steps, r = {RANK}, one seed."]


TABLES: dict[str, Callable[[], list[str]]] = {
    "modules": module_table,
    "lora": lora_table,
    "flops": flops_table,
    "kept": kept_table,
    "demo": demo_table,
}
SLOW_TABLES = ("kept",)


def render(page: str, names: tuple[str, ...] = tuple(TABLES)) -> str:
    """Return the page with these tables made anew."""
    return fill(page, PAGE, TABLES, names)


if __name__ == "__main__":
    write_or_compare(PAGE, TABLES)
