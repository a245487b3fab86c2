"""Two LoRA steps of a tiny model, whole and with a kill in between, in processes of their own.

`python -m lorafit.doctor.selftest FOLDER RUN DEVICE [kill]` trains `FOLDER/RUN`; with `kill` it
ends itself by SIGKILL as soon as the checkpoint of the first step is on disk.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lorafit.report.records import StepRecord

_SETTINGS = {
    "max_steps": "2",
    "save_steps": "1",
    "eval_steps": "2",
    "per_device_train_batch_size": "2",
    "gradient_accumulation_steps": "2",
    "max_length": "64",
    "lora_dropout": "0.1",
    "learning_rate": "1e-3",
    "warmup_steps": "0",
    "gradient_checkpointing": "false",
    "torch_compile": "false",
}
_NUM_ROWS = 24
_NUM_DOCUMENTS = 300
"""Enough text for a tokenizer of a few hundred tokens."""


class SelfTestError(Exception):
    """The test could not be carried through; the text says where it stopped."""


@dataclass(frozen=True)
class SelfTest:
    """What came of the two runs."""

    losses: tuple[float, ...]
    num_different: int
    """Adapter numbers that differ between the whole run and the resumed one."""
    num_numbers: int


def run_selftest(device: str, python: str, timeout_seconds: float) -> SelfTest:
    """Train whole, train and kill, resume, and compare both adapters bit by bit.

    Raises:
        SelfTestError: a process failed, hung, or was not killed where it should have been.
    """
    deadline = time.monotonic() + timeout_seconds
    with tempfile.TemporaryDirectory(prefix="lorafit-selftest-") as name:
        folder = Path(name)
        _run(python, folder, deadline, "whole", device)
        killed = _run(python, folder, deadline, "killed", device, "kill", may_die=True)
        if killed != -signal.SIGKILL:
            raise SelfTestError(f"the run that was to be killed ended with exit code {killed}")
        _run(python, folder, deadline, "killed", device)
        return _compare(folder)


def _run(
    python: str, folder: Path, deadline: float, run: str, *arguments: str, may_die: bool = False
) -> int:
    """Run this module in a process of its own and return its exit code."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("LORAFIT_")},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LORAFIT_CACHE_DIR": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    try:
        result = subprocess.run(
            [python, "-m", "lorafit.doctor.selftest", str(folder), run, *arguments],
            capture_output=True,
            text=True,
            timeout=max(0.1, deadline - time.monotonic()),
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SelfTestError(f"the {run} run took too long; give it time: --timeout 600") from None
    if result.returncode and not may_die:
        tail = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
        raise SelfTestError(f"the {run} run failed: {tail[-1]}")
    return result.returncode


def _compare(folder: Path) -> SelfTest:
    from safetensors.numpy import load_file

    whole, resumed = (
        load_file(folder / run / "adapter" / "adapter_model.safetensors")
        for run in ("whole", "killed")
    )
    if whole.keys() != resumed.keys():
        raise SelfTestError("the adapters of the two runs do not hold the same tensors")
    different = sum(int((whole[name] != resumed[name]).sum()) for name in whole)
    events = (folder / "whole" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return SelfTest(
        losses=tuple(float(json.loads(line)["loss"]) for line in events),
        num_different=different,
        num_numbers=sum(tensor.size for tensor in whole.values()),
    )


class _KillAtFirstCheckpoint:
    """An observer that ends its own process, as the system's out-of-memory killer would."""

    def on_start(self, num_steps: int, first_step: int) -> None:
        """Wait."""

    def on_step(self, record: StepRecord) -> None:
        """Wait."""

    def on_evaluation(self, step: int, done: int, total: int) -> None:
        """Wait."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """End here, without a chance to tidy up."""
        os.kill(os.getpid(), signal.SIGKILL)

    def on_note(self, text: str) -> None:
        """Wait."""

    def on_end(self) -> None:
        """Wait."""


def _write_inputs(folder: Path) -> None:
    """Write a model of a million random parameters, its tokenizer, and rows to train on."""
    import torch

    from lorafit.demo import corpus
    from lorafit.demo.pretrain import Recipe, build_initial_model, build_tokenizer

    recipe = Recipe(num_hidden_layers=2)
    documents = list(corpus.documents(recipe.seed, _NUM_DOCUMENTS))
    tokenizer = build_tokenizer(documents, vocab_size=512)
    torch.manual_seed(recipe.seed)
    build_initial_model(recipe, tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    long = [text for text in documents if len(text) > 80]
    rows = [{"prompt": text[:40], "completion": text[40:80]} for text in long[:_NUM_ROWS]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")


def _train(folder: Path, run: str, device: str, *, is_killed: bool) -> None:
    from lorafit.config.resolve import resolve_run
    from lorafit.hardware.detect import detect_device
    from lorafit.model.libraries import prepare_libraries
    from lorafit.training.planning.plan import plan_run
    from lorafit.training.run import run_training

    prepare_libraries()
    if not (folder / "rows.jsonl").exists():
        _write_inputs(folder)
    places = {
        "model": str(folder / "model"),
        "data": str(folder / "rows.jsonl"),
        "output_dir": str(folder / run),
        "device": device,
    }
    found = detect_device(device)
    resolved = resolve_run(
        preset=None,
        config_file=None,
        overrides=[],
        flags={**_SETTINGS, **places},
        environ={},
        device=found,
    )
    observers = [_KillAtFirstCheckpoint()] if is_killed else []
    run_training(plan_run(resolved, found), observers=observers)


if __name__ == "__main__":
    _train(Path(sys.argv[1]), sys.argv[2], sys.argv[3], is_killed="kill" in sys.argv[4:])
