"""Two processes share the rows of every step, and then the base weights too: the same run.

python examples/two_processes.py

On GPUs each process takes one: `--gpus 0,1`.
"""

import sys
from pathlib import Path

from common import lorafit, nli_rows, read_choices, write_rows

from lorafit.report.events import read_events


def losses_of(run: Path) -> list[float]:
    return [float(event["loss"]) for event in read_events(run)]


def adapter_of(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def main() -> None:
    choices = read_choices(__doc__, steps=20)
    rows = (
        {"prompt": f"{row['premise']}\nReasoning:", "completion": " " + row["reasoning"]}
        for row in nli_rows("train", choices.at_most(400))
    )
    data = write_rows(choices.folder / "my.jsonl", rows)
    flags = [*choices.short_run, "--data", str(data)]
    # The 16 rows of a step are 2 x 8.
    flags[flags.index("--per-device-train-batch-size") + 1] = "8"
    runs = {name: choices.folder / name for name in ("alone", "whole", "shared")}

    lorafit("train", *flags, "--output-dir", runs["alone"])
    two = ["--num-processes", 2]
    lorafit("train", *flags, *two, "--parallelism", "ddp", "--output-dir", runs["whole"])
    lorafit("train", *flags, *two, "--parallelism", "fsdp", "--output-dir", runs["shared"])

    pairs = zip(losses_of(runs["alone"]), losses_of(runs["whole"]), strict=True)
    # The model's own dropout draws other activations in each process; without it, it is 1e-5.
    print(f"one process and two: losses differ by {max(abs(a - b) for a, b in pairs):.1e} at most")
    if adapter_of(runs["whole"]) != adapter_of(runs["shared"]):
        sys.exit("the adapters with whole and with shared weights differ")
    print("two processes with whole and with shared weights: adapters equal, byte for byte")


if __name__ == "__main__":
    main()
