"""The options of `lorafit train` that are no settings."""

from pathlib import Path
from typing import Annotated

import typer

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan; load no weights, train nothing.")
]
Resume = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint folder to continue from, or auto. An unfinished run in --output-dir "
        "is continued without this.",
        metavar="auto|FOLDER",
    ),
]
Extend = Annotated[
    str | None,
    typer.Option(
        help="Make the run in --output-dir this long in all and continue it; shows first what "
        "that does to the learning rate.",
        metavar="5epochs|900steps",
    ),
]
ImportHfCheckpoint = Annotated[
    Path | None,
    typer.Option(
        help="Begin a new run from a checkpoint of transformers' Trainer with PEFT: adapter, "
        "AdamW's moments and step. Shows what of it could not be verified.",
        metavar="FOLDER",
    ),
]
AllowMismatch = Annotated[
    list[str] | None,
    typer.Option(
        help="Continue although this fact of the run differs now, such as learning_rate; may "
        "be repeated.",
        metavar="NAME",
    ),
]
Gpus = Annotated[
    str | None,
    typer.Option(help="GPUs to use, counted from 0; several are one process each.", metavar="0,1"),
]
Fit = Annotated[
    bool,
    typer.Option(
        "--fit",
        help="Choose micro-batch and checkpointing: the fastest that fit, same effective "
        "batch. --preset auto is the defaults with --fit.",
    ),
]
AllowOomAttempt = Annotated[
    bool,
    typer.Option(
        "--allow-oom-attempt", help="Train even though the estimate says it will not fit."
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(
        "--log-level",
        help="How much is told: warning (notes only), info, or debug (every step, and what "
        "the libraries say).",
        metavar="warning|info|debug",
    ),
]
JsonAtEnd = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout at the end.")
]
