"""A run that is killed and started again ends with the same adapter as one left alone, to the bit.

python examples/resume_after_a_kill.py
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

from common import Choices, lorafit, nli_rows, read_choices, write_rows


def train_and_kill(flags: list[str], run: Path) -> None:
    """Start the training in a process of its own, and kill it once a checkpoint lies there."""
    command = [sys.executable, "-m", "lorafit", "train", *flags, "--output-dir", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(run.glob("checkpoint-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    print(f"killed (exit code {code}); there are: {sorted(p.name for p in run.iterdir())}")


def adapter_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def flags_of(choices: Choices) -> list[str]:
    rows = (
        {"prompt": f"{row['premise']}\nReasoning:", "completion": " " + row["reasoning"]}
        for row in nli_rows("train", choices.at_most(400))
    )
    data = write_rows(choices.folder / "my.jsonl", rows)
    return [
        *choices.short_run,
        "--data",
        str(data),
    ]


def main() -> None:
    choices = read_choices(__doc__, steps=40)
    flags = flags_of(choices)
    alone, killed = choices.folder / "alone", choices.folder / "killed"

    lorafit("train", *flags, "--output-dir", alone)
    train_and_kill(flags, killed)
    lorafit("checkpoints", "verify", killed)
    lorafit("train", *flags, "--output-dir", killed)
    if adapter_of(alone) != adapter_of(killed):
        sys.exit("the two adapters differ")
    print("the two adapters are equal, byte for byte")


if __name__ == "__main__":
    main()
