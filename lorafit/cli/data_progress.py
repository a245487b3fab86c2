"""How far a large data file is: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lorafit.cli import console
from lorafit.units import format_count

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 30.0
"""Time between two lines."""


@contextmanager
def shown_data_progress() -> Iterator["DataProgress"]:
    """Context with what to call while data is read; nothing is shown for small files."""
    progress = DataProgress()
    try:
        yield progress
    finally:
        progress.close()


class DataProgress:
    """Shows what it hears; a `lorafit.data.progress.Tell`."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._next_line = 0.0

    def __call__(self, stage: str, share: float, rows: int) -> None:
        """Show that `share` of what `stage` says is done, and how many rows it were so far."""
        if console.stderr_console().is_terminal:
            self._move_bar(stage, share, rows)
        else:
            self._say(stage, share, rows)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _move_bar(self, stage: str, share: float, rows: int) -> None:
        if self._bar is None or self._task is None:
            self._bar = _new_bar()
            self._task = self._bar.add_task("", total=1.0, rows="")
            self._bar.start()
        if stage != self._stage:
            # The time that remains is that of this stage.
            self._bar.reset(self._task, description=stage)
            self._stage = stage
        text = f"{format_count(rows)} rows" if rows else ""
        self._bar.update(self._task, completed=share, rows=text)

    def _say(self, stage: str, share: float, rows: int) -> None:
        now = time.monotonic()
        if stage == self._stage and now < self._next_line:
            return
        counted = f", {format_count(rows)} rows" if rows else ""
        console.say(f"{stage}: {share:.0%}{counted}")
        self._stage, self._next_line = stage, now + LINE_SECONDS


def _new_bar() -> "Progress":
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]}"),
        Remaining(),
        console=console.stderr_console(),
        transient=True,
    )
