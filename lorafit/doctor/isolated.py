"""Proofs that can take their process down: `python -m lorafit.doctor.isolated NAME DEVICE`.

Each prints one JSON object. They multiply real numbers on the real device and compare.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


def prove_four_bit(device: str) -> dict[str, Any]:
    """Quantize a matrix to NF4, multiply on `device`, and compare with float32."""
    import bitsandbytes
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 128, generator=generator).to(device)
    inputs = torch.randn(8, 128, generator=generator).to(device)
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    product = bitsandbytes.matmul_4bit(inputs, packed.t(), quant_state=state)
    exact = inputs @ weight.t()
    error = torch.linalg.norm(product - exact) / torch.linalg.norm(exact)
    return {"relative_error": float(error), "version": bitsandbytes.__version__}


def prove_matmul(device: str) -> dict[str, Any]:
    """Start the device, multiply two matrices on it, and compare with the CPU."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left = torch.randn(256, 256, generator=generator)
    right = torch.randn(256, 256, generator=generator)
    product = (left.to(device) @ right.to(device)).cpu()
    exact = left @ right
    error = torch.linalg.norm(product - exact) / torch.linalg.norm(exact)
    return {"relative_error": float(error), "version": torch.__version__}


PROOFS = {"four-bit": prove_four_bit, "matmul": prove_matmul}


class ProofError(Exception):
    """A proof did not come back: the process died, hung or raised; the text says which."""


class ProofTimeoutError(ProofError):
    """A proof did not come back in time, which on a busy machine proves nothing."""


def run_proof(name: str, device: str, python: str, timeout_seconds: float) -> dict[str, Any]:
    """Run a proof in a process of its own and return its JSON object.

    Raises:
        ProofTimeoutError: the process took too long and was ended.
        ProofError: the process was killed by a signal, or raised.
    """
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        result = subprocess.run(
            [python, "-m", "lorafit.doctor.isolated", name, device],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProofTimeoutError(f"no answer within {timeout_seconds:g} s") from None
    if result.returncode < 0:
        raise ProofError(f"the process was ended by {signal.Signals(-result.returncode).name}")
    lines = result.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        tail = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise ProofError(tail[-1]) from None
    if "failure" in answer:
        raise ProofError(str(answer["failure"]))
    assert isinstance(answer, dict)
    return answer


def _main(name: str, device: str) -> None:
    try:
        answer = PROOFS[name](device)
    except Exception as failure:  # reported to the parent as data
        answer = {"failure": f"{type(failure).__name__}: {failure}"}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:3])
