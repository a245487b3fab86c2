"""torch.compile's partitioner beside the lean layers, and "augmented K" LoRA beside two products.

    python bench/partitioner.py [--tokens 128] [--rounds 3] [--skip-time]

1. Bytes that one decoder layer of Phi-2's widths keeps for backward: PEFT's layer as it is, the
   same compiled with several `activation_memory_budget`, and lorafit's lean layer, uncompiled.
   Every tensor that autograd saves while the layer runs is counted once by its storage; weights
   and adapters are not counted, the layer's input is.
2. CPU seconds of forward and backward of the same layers, in turns, medians over rounds.
3. [x | xA'] [W | sB]' as one product, against xW' + s(xA')B', forward and backward.

Needs a C++ compiler for the compiled layers. One thread, one row, no padding.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from lorafit.config.schema import Settings
from lorafit.model.build import add_adapter, decoder_layers
from lorafit.model.libraries import prepare_libraries

RESULTS = Path(__file__).parent / "results"
PHI_2 = {
    "vocab_size": 256,  # no part of a decoder layer
    "hidden_size": 2560,
    "intermediate_size": 10_240,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "num_hidden_layers": 1,
    "resid_pdrop": 0.1,
}
RANK = 16
BUDGETS = (1.0, 0.7, 0.5, 0.2)
LEAN, STOCK, CHECKPOINTED = "lean", "stock", "stock, whole layer checkpointed"
PRODUCTS = (("q_proj", 2560, 2560), ("fc1", 2560, 10_240), ("fc2", 10_240, 2560))


@dataclass
class Arm:
    """One way to run a layer, and what it measured."""

    name: str
    dtype: str
    lora_dropout: float
    saved_bytes_per_token: float
    compile_seconds: float | None = None
    cpu_seconds: float | None = None
    """Median of forward and backward; None where it was not timed."""
    ratio_to_lean: float | None = None
    """Median over rounds of its time over that of the lean layer in the same round."""


class Layer:
    """A decoder layer with adapters that is called as the model calls it."""

    def __init__(self, name: str, dtype: torch.dtype, dropout: float, tokens: int) -> None:
        from transformers import AutoModelForCausalLM, PhiConfig

        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(
            PhiConfig(**PHI_2), attn_implementation="sdpa", dtype=dtype
        )
        settings = Settings(
            kernels="lorafit" if name == LEAN else "stock",
            lora_r=RANK,
            lora_dropout=dropout,
            gradient_checkpointing=name == CHECKPOINTED,
        )
        self.model, _ = add_adapter(base, settings)
        for parameter_name, parameter in self.model.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.02)
        (self.layer,) = decoder_layers(base)
        self.body: Any = base.model
        shape = (1, tokens, int(PHI_2["hidden_size"]))
        self.inputs = torch.randn(shape, dtype=dtype, requires_grad=True)
        self.compile_seconds: float | None = None

    def compile(self, budget: float) -> None:
        """Compile the layer, and run it once."""
        import torch._functorch.config as functorch

        torch._dynamo.reset()
        functorch.activation_memory_budget = budget
        self.layer.compile()
        started = time.process_time()
        self.step()
        self.compile_seconds = time.process_time() - started

    def forward(self) -> torch.Tensor:
        """Run the model's body: this one layer between embedding and last norm."""
        output: torch.Tensor = self.body(inputs_embeds=self.inputs, use_cache=False)[0]
        return output

    def step(self) -> None:
        """Run forward and backward."""
        self.model.zero_grad()
        self.inputs.grad = None
        output = self.forward()
        torch.autograd.backward(output, torch.ones_like(output))

    def saved_bytes(self) -> int:
        """Return the bytes that the layer keeps for backward."""
        known = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        known |= {b.untyped_storage().data_ptr() for b in self.model.buffers()}
        storages: dict[int, int] = {}
        held = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                storages[storage.data_ptr()] = storage.nbytes()
                held.append(storage)  # so that no address is given out twice
            return tensor

        call = self.layer.forward
        compiled = self.layer._compiled_call_impl

        def counted(*arguments: Any, **options: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return (compiled or call)(*arguments, **options)

        self.layer.__dict__["_compiled_call_impl"] = counted
        try:
            output = self.forward()
        finally:
            self.layer.__dict__["_compiled_call_impl"] = compiled
        torch.autograd.backward(output, torch.ones_like(output))
        return sum(storages.values())


def measure_layers(dtype: torch.dtype, dropout: float, tokens: int, rounds: int) -> list[Arm]:
    """Return bytes and, for `rounds` > 0, times of all arms.

    Each arm is timed in turns with a lean layer right after it was compiled: the compiler keeps
    one version of a layer's code, which the next budget replaces.
    """
    plans: list[tuple[str, float | None]] = [(LEAN, None), (STOCK, None), (CHECKPOINTED, None)]
    plans += [(STOCK, budget) for budget in BUDGETS]
    lean = Layer(LEAN, dtype, dropout, tokens)
    arms: list[Arm] = []
    for name, budget in plans:
        layer = Layer(name, dtype, dropout, tokens)
        if budget is not None:
            layer.compile(budget)
        else:
            layer.step()
        title = name if budget is None else f"{name}, compiled, budget {budget:g}"
        saved = layer.saved_bytes() / tokens
        arm = Arm(title, str(dtype)[6:], dropout, saved, layer.compile_seconds)
        if rounds:
            own, its = interleave([layer.step, lean.step], rounds)
            arm.cpu_seconds = statistics.median(own)
            arm.ratio_to_lean = statistics.median(
                mine / other for mine, other in zip(own, its, strict=True)
            )
        arms.append(arm)
        print(f"{arm}", flush=True)
    return arms


def interleave(functions: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return CPU seconds of every function in every round; the first round warms up."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1 if rounds else 0):
        for function, own in zip(functions, times, strict=True):
            started = time.process_time()
            function()
            if number:
                own.append(time.process_time() - started)
    return times


# -- Augmented K ----------------------------------------------------------------------------


@dataclass
class Product:
    """One target's products both ways, forward and backward."""

    module: str
    dtype: str
    gflop: float
    """The same both ways: 2N(IO + IR + RO) forward, and 2N(IO + IR + RO + RO + IR) backward."""
    separate_seconds: float
    augmented_ratio: float
    """Median over rounds of the time of one product over that of separate ones."""
    augmented_in_place_ratio: float
    """The same where x lies in the wide buffer already, so that it need not be copied."""
    extra_bytes_per_token: int
    """Of the wide copy of x, where it is made."""
    extra_weight_bytes: int
    largest_difference: float
    """Of the outputs, as a share of the largest output."""


def compare_products(
    module: str, inputs: int, outputs: int, dtype: torch.dtype, tokens: int, rounds: int
) -> Product:
    """Measure one target both ways."""
    torch.manual_seed(0)
    x = torch.randn(tokens, inputs, dtype=dtype)
    weight = torch.randn(outputs, inputs, dtype=dtype) / inputs**0.5
    a = torch.randn(RANK, inputs, dtype=dtype) / inputs**0.5
    b = torch.randn(outputs, RANK, dtype=dtype) / RANK**0.5
    gradient = torch.randn(tokens, outputs, dtype=dtype)
    wide_weight = torch.cat([weight, b], 1)
    wide_x = torch.cat([x, x.new_zeros(tokens, RANK)], 1)
    outcome: dict[str, torch.Tensor] = {}

    def separate() -> None:
        low = x @ a.t()
        y = torch.addmm(x @ weight.t(), low, b.t())
        d_low = gradient @ b
        d_x = torch.addmm(gradient @ weight, d_low, a)
        outcome["separate"] = y
        _ = (d_low.t() @ x, gradient.t() @ low, d_x)

    def augmented(in_place: bool) -> None:
        # The adapter's part of the wide weight changes with every step.
        wide_weight[:, inputs:] = b
        wide = wide_x if in_place else torch.empty_like(wide_x)
        if not in_place:
            wide[:, :inputs] = x
        low = wide[:, :inputs] @ a.t()
        wide[:, inputs:] = low
        y = wide @ wide_weight.t()
        d_wide = gradient @ wide_weight
        d_low = d_wide[:, inputs:]
        d_x = torch.addmm(d_wide[:, :inputs], d_low, a)
        outcome["augmented"] = y
        _ = (d_low.t() @ wide[:, :inputs], gradient.t() @ low, d_x)

    functions: list[Callable[[], object]] = [
        separate, lambda: augmented(False), lambda: augmented(True),
    ]  # fmt: skip
    times = interleave(functions, rounds)
    ratios = [
        statistics.median(mine / its for mine, its in zip(own, times[0], strict=True))
        for own in times[1:]
    ]
    size = x.element_size()
    flop = 2 * tokens * (2 * inputs * outputs + 3 * RANK * (inputs + outputs))
    difference = (outcome["augmented"] - outcome["separate"]).float().abs().max()
    return Product(
        module=module,
        dtype=str(dtype)[6:],
        gflop=flop / 1e9,
        separate_seconds=statistics.median(times[0]),
        augmented_ratio=ratios[0],
        augmented_in_place_ratio=ratios[1],
        extra_bytes_per_token=(inputs + RANK) * size,
        extra_weight_bytes=outputs * RANK * size,
        largest_difference=float(difference / outcome["separate"].float().abs().max()),
    )


# -- Results --------------------------------------------------------------------------------


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    compiler = shutil.which("g++")
    told = (
        subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        if compiler
        else "no C++ compiler"
    )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "versions": {n: version(n) for n in ("torch", "transformers", "peft")},
        "compiler": told.splitlines()[0],
        "date": datetime.now(UTC).date().isoformat(),
    }


def render(machine: dict[str, Any], tokens: int, arms: list[Arm], products: list[Product]) -> str:
    """Return the results as Markdown."""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    lines = [
        "# torch.compile's partitioner and augmented K (CPU)",
        "",
        f"{machine['date']}, {machine['cpu']}, {machine['threads']} thread, {versions}, "
        f"{machine['compiler']}. Written by `python bench/partitioner.py`.",
        "",
        f"## One layer of Phi-2's widths, {tokens} tokens, LoRA r {RANK} on all six linears",
        "",
        "| layer | dtype | lora_dropout | kept for backward, KiB a token | CPU s, forward and "
        "backward | x lean | compile, CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        seconds = [
            "" if n is None else f"{n:.{digits}f}"
            for n, digits in (
                (arm.cpu_seconds, 3), (arm.ratio_to_lean, 2), (arm.compile_seconds, 0)
            )
        ]  # fmt: skip
        lines.append(
            f"| {arm.name} | {arm.dtype} | {arm.lora_dropout:g} | "
            f"{arm.saved_bytes_per_token / 1024:.1f} | {' | '.join(seconds)} |"
        )
    lines += [
        "",
        "## [x \\| xA'] [W \\| sB]' against separate products, forward and backward",
        "",
        "| target | dtype | GFLOP, both ways | separate, CPU s | one product, x separate | the "
        "same where x lies in the wide buffer | copy of x, KiB a token | wider weight, KiB | "
        "largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.module} | {p.dtype} | {p.gflop:.1f} | {p.separate_seconds:.3f} | "
        f"{p.augmented_ratio:.3f} | {p.augmented_in_place_ratio:.3f} | "
        f"{p.extra_bytes_per_token / 1024:.1f} | {p.extra_weight_bytes / 1024:.0f} | "
        f"{p.largest_difference:.1e} |"
        for p in products
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-time", action="store_true", help="count bytes only")
    parser.add_argument("--output", type=Path, default=RESULTS / "partitioner_cpu.json")
    options = parser.parse_args()
    prepare_libraries()
    torch.set_num_threads(1)
    rounds = 0 if options.skip_time else options.rounds
    arms: list[Arm] = []
    for dtype in (torch.bfloat16, torch.float32):
        arms += measure_layers(dtype, 0.0, options.tokens, rounds)
    arms += measure_layers(torch.bfloat16, 0.05, options.tokens, 0)
    products = [
        compare_products(*shape, dtype, options.tokens, options.rounds)
        for dtype in (torch.bfloat16, torch.float32)
        for shape in PRODUCTS
    ]
    machine = describe_machine()
    document = {
        "schema_version": 1,
        "machine": machine,
        "tokens": options.tokens,
        "rounds": rounds,
        "layers": [asdict(arm) for arm in arms],
        "products": [asdict(product) for product in products],
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    text = render(machine, options.tokens, arms, products)
    options.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
