"""Proofs that can take their process down: `python -m lorafit.doctor.isolated NAMES DEVICE`.

Each prints one JSON object. They multiply real numbers on the real device and compare.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
"""What a proof measured, by name."""


def prove_four_bit(device: str) -> Answer:
    """Quantize a matrix to NF4, multiply on `device`, and compare with float32."""
    import torch

    # bitsandbytes compiles functions for the CPU on import, and torch loads its compiler when an
    # operator is called that is to be kept from it: seconds each. Uncompiled, the same functions
    # run with neither. This process does nothing else.
    torch.compile = _uncompiled  # type: ignore[assignment]  # a stand-in for this process
    torch._disable_dynamo = _uncompiled  # type: ignore[attr-defined, assignment]  # the same
    import bitsandbytes

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator).to(device)
    inputs = torch.randn(8, 128, generator=generator).to(device)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    product = bitsandbytes.matmul_4bit(inputs, packed.t(), quant_state=state)
    exact = inputs @ weight.t()
    error = torch.linalg.norm(product - exact) / torch.linalg.norm(exact)
    return {"relative_error": float(error), "version": bitsandbytes.__version__}


def _uncompiled(function: Any = None, **_options: Any) -> Any:
    return function if function is not None else _uncompiled


def prove_matmul(device: str) -> Answer:
    """Start the device, multiply two matrices on it, and compare with the CPU."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randn(256, 256, generator=generator)
    right = torch.randn(256, 256, generator=generator)
    product = (left.to(device) @ right.to(device)).cpu()
    exact = left @ right
    error = torch.linalg.norm(product - exact) / torch.linalg.norm(exact)
    return {"relative_error": float(error), "version": torch.__version__}


def prove_repeat(device: str) -> Answer:
    """Take the gradient of a small attention layer twice, and count the numbers that differ."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 128, 32, generator=generator)
    weight = torch.randn(32, 32, generator=generator)
    gradients = []
    for _ in range(2):
        states = inputs.to(device)
        matrix = weight.to(device).requires_grad_()
        heads = states @ matrix
        product = torch.nn.functional.scaled_dot_product_attention(
            heads, heads, heads, is_causal=True
        )
        torch.autograd.backward(product.square().sum())
        assert matrix.grad is not None
        gradients.append(matrix.grad.cpu())
    different = int((gradients[0] != gradients[1]).sum())
    return {"different": different, "of": weight.numel(), "version": torch.__version__}


def prove_bfloat16(device: str) -> Answer:
    """Multiply in bfloat16 on `device`, compare with float32, and see what autocast computes in."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randn(64, 64, generator=generator)
    right = torch.randn(64, 64, generator=generator)
    halves = [matrix.to(device, torch.bfloat16) for matrix in (left, right)]
    product = (halves[0] @ halves[1]).cpu().float()
    exact = left @ right
    error = torch.linalg.norm(product - exact) / torch.linalg.norm(exact)
    with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16):
        cast = left.to(device) @ right.to(device)
    return {
        "relative_error": float(error),
        "autocast_dtype": str(cast.dtype).removeprefix("torch."),
        "version": torch.__version__,
    }


def prove_nccl(device: str) -> Answer:
    """Sum numbers over all visible GPUs, as the gradients of several processes are summed."""
    import torch
    from torch.cuda import nccl

    kind, count = device.partition(":")[0], torch.cuda.device_count()
    tensors = [torch.full((4096,), index + 1.0, device=f"{kind}:{index}") for index in range(count)]
    nccl.all_reduce(tensors)  # type: ignore[no-untyped-call]  # torch's own
    total = count * (count + 1) / 2
    wrong = [index for index, tensor in enumerate(tensors) if bool((tensor.cpu() != total).any())]
    version = nccl.version()  # type: ignore[no-untyped-call]  # torch's own
    return {"gpus": count, "wrong_gpus": wrong, "version": ".".join(map(str, version[:3]))}


PROOFS = {
    "four-bit": prove_four_bit,
    "matmul": prove_matmul,
    "repeat": prove_repeat,
    "bfloat16": prove_bfloat16,
    "nccl": prove_nccl,
}


class ProofError(Exception):
    """A proof did not come back: the process died, hung or raised; the text says which."""


class ProofTimeoutError(ProofError):
    """A proof did not come back in time, which on a busy machine proves nothing."""


def run_proof(name: str, device: str, python: str, timeout_seconds: float) -> Answer:
    """Run one proof in a process of its own and return its answer.

    Raises:
        ProofTimeoutError: the process took too long and was ended.
        ProofError: the process was killed by a signal, or raised.
    """
    answer = run_proofs([name], device, python, timeout_seconds)[name]
    if isinstance(answer, ProofError):
        raise answer
    return answer


def run_proofs(
    names: Sequence[str], device: str, python: str, timeout_seconds: float
) -> dict[str, Answer | ProofError]:
    """Run proofs in one process, one after the other; one that kills it costs no other proof."""
    answers: dict[str, Answer | ProofError] = {}
    deadline = time.monotonic() + timeout_seconds
    while left := [name for name in names if name not in answers]:
        seconds = max(0.1, deadline - time.monotonic())
        output, failure = _run_process(left, device, python, seconds)
        for line in output.splitlines():
            answer = _read_answer(line)
            if answer is not None and answer.get("proof") in left:
                problem = answer.get("failure")
                answers[answer["proof"]] = ProofError(str(problem)) if problem else answer
        unanswered = [name for name in left if name not in answers]
        if not unanswered:
            break
        answers[unanswered[0]] = failure
        if isinstance(failure, ProofTimeoutError):
            answers |= dict.fromkeys(unanswered, failure)
    return answers


def _run_process(
    names: Sequence[str], device: str, python: str, timeout_seconds: float
) -> tuple[str, ProofError]:
    """Return what the process printed, and why there is no more of it."""
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        result = subprocess.run(
            [python, "-m", "lorafit.doctor.isolated", ",".join(names), device],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        printed = late.stdout or b""
        text = printed.decode("utf-8", "replace") if isinstance(printed, bytes) else printed
        return text, ProofTimeoutError(f"no answer within {timeout_seconds:.3g} s")
    if result.returncode < 0:
        name = signal.Signals(-result.returncode).name
        return result.stdout, ProofError(f"the process was ended by {name}")
    tail = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
    return result.stdout, ProofError(tail[-1])


def _read_answer(line: str) -> Answer | None:
    try:
        answer = json.loads(line)
    except ValueError:  # a library's own words
        return None
    return answer if isinstance(answer, dict) else None


def _main(names: str, device: str) -> None:
    for name in names.split(","):
        try:
            answer = PROOFS[name](device)
        except Exception as failure:  # reported to the parent as data
            answer = {"failure": f"{type(failure).__name__}: {failure}"}
        sys.stdout.write(json.dumps({"proof": name, **answer}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:3])
