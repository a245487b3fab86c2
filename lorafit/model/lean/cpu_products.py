"""Which library multiplies fp32 matrices on this CPU: measured once a machine, then remembered.

PyTorch's wheels carry two, MKL behind `torch.mm` and oneDNN. On processors that are not Intel's MKL
leaves the widest vector units idle, and oneDNN was measured up to twice as fast; elsewhere the two
are close. Which one runs decides over the last bits of a run: run.json keeps it, and a resumed run
takes the same.
"""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from lorafit.files import cache_folder, write_json
from lorafit.hardware.info import Choice
from lorafit.model.lean.products import onednn_product, use_onednn, uses_onednn

_TOKENS, _WIDTH = 512, 1024
_ROUNDS, _FEWEST_ROUNDS = 9, 3
_WORTH = 0.9
"""Where the two are about equal, chance must not decide: then it is oneDNN."""
_CLEAR = 1.25
"""Where one is this much the faster after a few rounds, the others would not turn the answer."""


def choose_cpu_products(cpu_name: str, folder: Path | None = None) -> Choice[bool]:
    """Return whether oneDNN takes the fp32 products of the lean layers, and why; and set it so.

    Args:
        cpu_name: the processor, as the answer is kept for it.
        folder: where answers are kept; the user's cache by default.
    """
    choice = _choose(cpu_name, folder or cache_folder() / "cpu-products")
    use_onednn(choice.value)
    return choice


ONEDNN, BLAS = "oneDNN", "torch.mm"
"""The two libraries, as run.json names them."""


def cpu_products() -> str:
    """Return which library takes the fp32 products of the lean layers now."""
    return ONEDNN if uses_onednn() else BLAS


def keep_cpu_products(recorded: str) -> str | None:
    """Take the library that a run began with; return what to say where this machine would not.

    Args:
        recorded: what `cpu_products` returned when the run began.
    """
    chosen = cpu_products()
    if recorded == chosen:
        return None
    if recorded == ONEDNN and not has_onednn():
        return (
            f"fp32 products by {BLAS}: this PyTorch has no oneDNN, with which this run began; it "
            "goes on, but not bit for bit as it would have"
        )
    use_onednn(recorded == ONEDNN)
    return (
        f"fp32 products stay with {cpu_products()}, as this run began; here {chosen} would be "
        "chosen"
    )


def has_onednn() -> bool:
    """Return whether this PyTorch was built with oneDNN."""
    return bool(torch._C._has_mkldnn)


def _choose(cpu_name: str, folder: Path) -> Choice[bool]:
    if not has_onednn():
        return Choice(False, "fp32 products by torch.mm: this PyTorch has no oneDNN")
    key = "".join(c if c.isalnum() else "-" for c in f"{cpu_name} {torch.__version__}")
    path = folder / f"{key}-{torch.get_num_threads()}.json"
    ratio = _read(path)
    if ratio is None:
        ratio = measure_onednn()
        # A read-only cache costs a tenth of a second a run, nothing more.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"schema_version": 1, "onednn_speed": ratio})
    figure = f"oneDNN runs them {ratio:.2f} times as fast as torch.mm here"
    if ratio > _WORTH:
        return Choice(True, f"fp32 products by oneDNN: {figure}")
    return Choice(False, f"fp32 products by torch.mm: {figure}")


def _read(path: Path) -> float | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["onednn_speed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, float) and 0 < found < 1000 else None


def measure_onednn() -> float:
    """Return the speed of oneDNN's fp32 product relative to `torch.nn.functional.linear`.

    Both run in turns, and the best of each counts: whatever else the machine does only slows down.
    """
    inputs, weight = torch.ones(_TOKENS, _WIDTH), torch.ones(_WIDTH, _WIDTH)
    candidates: tuple[Callable[[], object], ...] = (
        lambda: functional.linear(inputs, weight),
        lambda: onednn_product(inputs, weight, None),
    )
    best = [float("inf"), float("inf")]
    for done in range(1, _ROUNDS + 1):
        for index, product in enumerate(candidates):
            started = time.perf_counter()
            product()
            best[index] = min(best[index], time.perf_counter() - started)
        ratio = best[0] / best[1]
        if done >= _FEWEST_ROUNDS and not _WORTH / _CLEAR < ratio < _WORTH * _CLEAR:
            break
    return ratio
