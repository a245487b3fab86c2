"""Write the tables of docs/PHI2-README.md from Phi-2's real modules; `--check` only compares.

python docs/make_phi2_tables.py
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import PhiConfig, PhiForCausalLM

from lorafit.model.lora import DEFAULT_TARGETS
from lorafit.units import MIB

PAGE = Path(__file__).parent / "PHI2-README.md"
RANKS = (8, 16, 32, 64)

# Bits a weight in NF4 with double quantization: 4, plus one 8-bit scale for 64 weights, plus one
# 32-bit scale for 256 of those (QLoRA, arXiv 2305.14314, section 3).
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


def phi2() -> PhiForCausalLM:
    """Return Phi-2 on the meta device; https://huggingface.co/microsoft/phi-2 config.json."""
    config = PhiConfig(
        vocab_size=51200,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=2048,
        partial_rotary_factor=0.4,
        hidden_act="gelu_new",
    )
    with torch.device("meta"):
        return PhiForCausalLM(config)


def module_table(model: PhiForCausalLM) -> list[str]:
    """Return a row for each module that holds weights; a layer's modules once, with their count."""
    rows = [
        "| module | how many | weight | parameters each | bf16 | NF4 |",
        "|---|---|---|---|---|---|",
    ]
    layers = len(model.model.layers)
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or (".layers." in name and ".layers.0." not in name):
            continue
        count = layers if ".layers." in name else 1
        num = sum(parameter.numel() for parameter in own)
        shape = " x ".join(map(str, own[0].shape))
        quantized = isinstance(module, torch.nn.Linear) and name != "lm_head"
        nf4_bytes = num * NF4_BITS / 8 if quantized else num * 2
        shown = name.replace("model.layers.0.", "layer: ").removeprefix("model.")
        rows.append(
            f"| `{shown}` | {count} | {shape} | {num:,} | {num * 2 / MIB:.1f} MiB "
            f"| {nf4_bytes / MIB:.1f} MiB |"
        )
    total = model.num_parameters()
    rows.append(f"| **all** | | | **{total:,}** | **{total * 2 / MIB:,.0f} MiB** | |")
    return rows


def lora_table(model: PhiForCausalLM) -> list[str]:
    """Return LoRA parameters by target and rank: r x (inputs + outputs) in each of the layers."""
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


def render(page: str) -> str:
    """Return the page with its tables made anew."""
    model = phi2()
    for name, rows in (("modules", module_table(model)), ("lora", lora_table(model))):
        start, end = f"<!-- {name}: generated -->\n", f"<!-- end {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = before + start + "\n".join(rows) + "\n" + end + after
    return page


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write the tables of docs/PHI2-README.md.")
    parser.add_argument("--check", action="store_true", help="compare only; 1 when stale")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    made = render(page)
    if arguments.check:
        sys.exit(0 if page == made else f"{PAGE} is stale: run {Path(__file__).name}")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
