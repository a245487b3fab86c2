"""Write the pictures of the README from real runs: what a terminal shows, as SVG.

python docs/make_pictures.py [--only NAME]

`train` trains the demo's tiny model for a minute, on the CPU. Its picture leaves out the flags that
suit so small a model.
"""

import argparse
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offline import nli_rows
from rich.console import Console, RenderableType
from rich.text import Text

FOLDER = Path(__file__).parent / "pictures"
COLUMNS = 100
ESTIMATE = "lorafit estimate-memory --preset balanced --hardware a10g"
TRAIN = (
    "lorafit train --data my.jsonl --output-dir outputs/first --device cpu --max-length 128 "
    "--max-steps 160 --batch-size 16 --effective-batch-size 16 --learning-rate 3e-3 --lora-r 16 "
    "--eval-steps 40"
)


def estimate_picture() -> list[RenderableType]:
    """Return what an estimate for an A10G prints, in colour."""
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(ESTIMATE)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"},
    )
    return [_prompt(ESTIMATE), Text.from_ansi(done.stdout)]


def train_picture() -> list[RenderableType]:
    """Return the panel of a run near its end, from the events that the run wrote."""
    from lorafit.cli.live_view import render_state
    from lorafit.demo.pretrain import ensure_demo_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = (
            {"prompt": f"{row['premise']}\nReasoning:", "completion": " " + row["reasoning"]}
            for row in nli_rows(3000)
        )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "my.jsonl").write_text(text, encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", *shlex.split(TRAIN)],
            cwd=folder,
            check=True,
            capture_output=True,
            env={**os.environ, "LORAFIT_MODEL": str(ensure_demo_model()), "OMP_NUM_THREADS": "1"},
        )
        state = _state_of(folder / "outputs" / "first")
        return [_prompt("lorafit train --data my.jsonl"), render_state(state, COLUMNS)]


def _state_of(run_dir: Path) -> Any:
    """Return what the panel knew at the run's last step but ten."""
    from lorafit.cli.live_view import Gauge, LiveState, describe_sample
    from lorafit.report.records import StepRecord

    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    memory = record["plan"]["memory"]
    gauge = Gauge(predicted_bytes=memory["process_bytes"], capacity_bytes=memory["capacity_bytes"])
    lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [event for event in map(json.loads, lines) if "loss" in event]
    state = LiveState(gauge, num_steps=len(events), first_step=0)
    fields = StepRecord.__dataclass_fields__
    for event in events[:-10]:
        state.add(StepRecord(**{name: event[name] for name in fields if name in event}))
        state.pace.started -= event["seconds"]
    samples = (run_dir / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    newest = json.loads(samples[-1])
    state.sample = describe_sample(newest["prompt"], newest["completion"])
    return state


def _prompt(command: str) -> Text:
    return Text.assemble(("$ ", "bold green"), (command, "bold"), "\n")


def write_svg(path: Path, parts: list[RenderableType]) -> None:
    """Write what a terminal would show as SVG, without fonts from elsewhere."""
    console = Console(
        record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True, highlight=False
    )
    for part in parts:
        console.print(part)
    svg = console.export_svg(title="lorafit", unique_id=path.stem)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")
    path.write_text(svg, encoding="utf-8")


PICTURES: dict[str, Callable[[], list[RenderableType]]] = {
    "estimate-memory": estimate_picture,
    "train": train_picture,
}


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Write the pictures of the README.")
    parser.add_argument("--only", choices=tuple(PICTURES), help="one picture; default: all")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in [arguments.only] if arguments.only else PICTURES:
        write_svg(FOLDER / f"{name}.svg", PICTURES[name]())


if __name__ == "__main__":
    main()
