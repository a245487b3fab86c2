"""The options of `lorafit estimate-memory` that are no settings."""

from pathlib import Path
from typing import Annotated, Any

import typer

_PANEL = "What to ask"


def _option(name: str, help_text: str, metavar: str | None = None, least: int | None = None) -> Any:
    return typer.Option(name, help=help_text, metavar=metavar, min=least, rich_help_panel=_PANEL)


Json = Annotated[bool, _option("--json", "Print one JSON document to stdout.")]
Compare = Annotated[
    str | None, _option("--compare", "Presets side by side: high,balanced,low.", "A,B,...")
]
Sweep = Annotated[
    str | None,
    _option(
        "--sweep",
        "One setting over values: max_length=512,1024; batch_size=1..16 doubles, "
        "batch_size=4..16:4 takes steps of 4; hardware=t4,a10g: which device is enough?",
        "NAME=VALUES",
    ),
]
MaxBatch = Annotated[bool, _option("--max-batch", "Find the largest micro-batch that fits.")]
Timeline = Annotated[
    Path | None,
    _option("--timeline", "Draw memory over the run into a .html, .png or .svg file.", "FILE"),
]
ShowAdvice = Annotated[
    bool | None,
    _option(
        "--advice/--no-advice",
        "When it is tight or exceeds: what to change first, each change traced. On, but off "
        "with --json.",
    ),
]
NumProcesses = Annotated[
    int,
    _option(
        "--num-processes",
        "Estimate each of so many processes, on a device of its own; see --parallelism.",
        least=1,
    ),
]
ExpandableSegments = Annotated[
    bool,
    _option(
        "--expandable-segments",
        "Estimate with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
    ),
]
Fast = Annotated[bool, _option("--fast", "Answer at once by a closed form, some per cent off.")]
NoCache = Annotated[bool, _option("--no-cache", "Trace again, even if the answer is stored.")]
