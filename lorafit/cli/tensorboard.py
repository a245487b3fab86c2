"""`lorafit tensorboard`: open the curves of runs in the browser."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from lorafit.cli import console
from lorafit.cli.options import Port
from lorafit.errors import InputError, UsageError
from lorafit.report.tensorboard import FOLDER
from lorafit.text import escape_control


def command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Output folders of `lorafit train`.")
    ],
    port: Port = 6006,
) -> None:
    """Open the curves of one or several runs in TensorBoard, on this machine only.

    Ctrl-C ends it. `lorafit report` and `lorafit serve` need nothing beside lorafit.

    Examples:
      lorafit tensorboard outputs/first

      lorafit tensorboard outputs/first outputs/second --port 0
    """
    folders = [_curves_of(name) for name in dict.fromkeys(runs)]
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError("tensorboard is not installed", hint="pip install tensorboard")
    names = [folder.parent.name or "run" for folder in folders]
    where = ["--logdir", str(folders[0])]
    if len(folders) > 1:
        pairs = zip(names, folders, strict=True)
        where = ["--logdir_spec", ",".join(f"{name}:{folder}" for name, folder in pairs)]
    console.say(f"TensorBoard on this machine only, Ctrl-C ends it: {', '.join(names)}")
    _run([*where, "--host", "127.0.0.1", "--port", str(port)])


def _curves_of(name: str) -> Path:
    """Return the folder with a run's curves.

    Raises:
        InputError: it is not a run, or has no curves.
    """
    run = Path(name)
    folder = run / FOLDER
    if not folder.is_dir():
        raise InputError(
            "holds no curves of TensorBoard" if run.is_dir() else "there is no such folder",
            where=escape_control(name),
            hint="name the --output-dir of a run that had report_to tensorboard, the default",
        )
    return folder


def _run(arguments: list[str]) -> None:
    """Run TensorBoard until it ends; Ctrl-C reaches it too, and is how it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *arguments],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        return
    if code:
        raise UsageError(
            f"TensorBoard ended with exit code {code}", hint="another --port may be free: --port 0"
        )
