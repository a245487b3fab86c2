"""How fast training could be at best: FLOPs a token against the matmul rate of the device.

    python -m peers.roofline DEVICE

measures that rate and prints it as JSON; on a CPU, that of each library that PyTorch carries.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def flops_per_token(config: Any, num_tokens: int) -> float:
    """Return the multiplications and additions that LoRA training of one token needs.

    With a frozen base each weight of a Linear module multiplies once forward and once for the
    gradient of its input, two FLOPs each: 4 x parameters. Causal attention adds, a layer, the
    products of scores and values with half the row's tokens at the mean, 2 x tokens x width
    forward (Kaplan et al., arXiv:2001.08361, table 1, halved), and twice that backward. Adapters,
    norms and anything computed a second time are left out: they are what is lost.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    parameters = sum(module.weight.numel() for module in linear)
    head_size = getattr(config, "head_dim", None)
    head_size = head_size or config.hidden_size // config.num_attention_heads
    width = config.num_attention_heads * head_size
    attention = 3 * 2 * num_tokens * width * config.num_hidden_layers
    return float(4 * parameters + attention)


def measure_matmul_rate(device: str) -> dict[str, float]:
    """Return the best rate of a large product, FLOP/s: bf16 on a GPU, float32 on a CPU."""
    import torch

    on_gpu = device.startswith("cuda")
    size, repeats = (8192, 50) if on_gpu else (512, 5)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(one, other)
        _wait(device)
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - started))
    return {"flops_per_second": best, "size": size}


def measure_cpu_rates() -> dict[str, float]:
    """Return the best rates of a large float32 product, FLOP/s, by the library that computes it.

    They run in turns: how far they are apart differs from one processor to the next.
    """
    import torch

    from lorafit.model.lean.products import onednn_product

    size = 1024
    one, other = torch.randn(size, size), torch.randn(size, size)
    products: dict[str, Callable[[], object]] = {"MKL": lambda: torch.mm(one, other)}
    if torch._C._has_mkldnn:
        products["oneDNN"] = lambda: onednn_product(one, other, None)
    best = dict.fromkeys(products, float("inf"))
    for _ in range(15):
        for name, product in products.items():
            started = time.perf_counter()
            product()
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: 2 * size**3 / seconds for name, seconds in best.items()}


def frozen_flops_per_token(model: Path) -> float:
    """Return the FLOPs of a token in the frozen products of a model folder's layers.

    Forward and for the gradient of the input, as in `flops_per_token`; without the head, which
    takes the tokens with targets only, and without attention.
    """
    config: dict[str, int] = json.loads((model / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    weights = config["num_hidden_layers"] * (4 * width * width + 2 * width * inner)
    return 4.0 * weights


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    on_cpu = sys.argv[1] == "cpu"
    print(json.dumps(measure_cpu_rates() if on_cpu else measure_matmul_rate(sys.argv[1])))
