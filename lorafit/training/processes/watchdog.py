"""Ends a run of several processes that stands still, and says which of them is the reason.

A collective operation waits for every process. One that hangs, or whose machine froze, would hold
all of them until a library gives up, which for some never happens.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

from lorafit.errors import ExitCode, PeerError
from lorafit.hardware.processes import Processes
from lorafit.training.processes.failures import FailureBoard, Told

_PERIOD_SECONDS = 1.0
_GRACE_SECONDS = 10.0
"""How long the main thread has to end by itself once a failure was told."""
_SILENCE_SECONDS = 4.0
"""A store that has not answered for so long is frozen, or cannot be reached."""


def _end(failure: PeerError) -> None:
    from lorafit.text import escape_control

    lines = [f"error: {failure}", *([f"hint: {failure.hint}"] if failure.hint else [])]
    # The main thread, which owns the console, is stuck in a library.
    sys.stderr.write("".join(f"{escape_control(line)}\n" for line in lines))
    sys.stderr.flush()


class Watchdog:
    """Two threads beside the training; `mark` tells it that something was done."""

    def __init__(
        self,
        processes: Processes,
        board: FailureBoard,
        timeout_seconds: float,
        *,
        say: Callable[[PeerError], None] = _end,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        """Watch; `say` and `leave` are how a stuck process speaks and ends."""
        self._processes = processes
        self._board = board
        self._timeout_seconds = timeout_seconds
        self._say = say
        self._leave = leave
        self._count = 0
        self._what = "starting"
        self._marked = time.monotonic()
        self._told_since: float | None = None
        self._told: Told | None = None
        self._answered = time.monotonic()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=f"lorafit-{work.__name__[1:]}", daemon=True)
            for work in (self._talk, self._watch)
        ]

    def start(self) -> None:
        """Begin to watch."""
        for thread in self._threads:
            thread.start()

    def mark(self, what: str) -> None:
        """Note that the main thread got through an exchange."""
        self._count += 1
        self._what = what
        self._marked = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        for thread in self._threads:
            # One that waits for a frozen store is left behind: it is a daemon.
            thread.join(timeout=2 * _PERIOD_SECONDS)

    def _talk(self) -> None:
        """Publish how far this process is, and read whether another one failed.

        In a thread of its own: a store whose process is frozen answers neither yes nor no.
        """
        published = -1
        while not self._stopped.wait(_PERIOD_SECONDS):
            try:
                if published != self._count:
                    published = self._count
                    self._board.mark(published, self._what)
                self._told = self._board.read()
                self._answered = time.monotonic()
            except RuntimeError:
                continue

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stopped.wait(_PERIOD_SECONDS):
            now = time.monotonic()
            if now - looked > 5 * _PERIOD_SECONDS:
                # This very process was frozen, as by a closed laptop: that is nobody's fault.
                self._marked += now - looked
                self._answered += now - looked
            looked = now
            if self._told is not None:
                self._follow(self._told, now)
            elif now - self._marked > self._timeout_seconds and not self._stopped.is_set():
                self._end_stalled(answers=now - self._answered < _SILENCE_SECONDS)
                return

    def _follow(self, told: Told, now: float) -> None:
        """End with the failure that another process told, if the main thread cannot."""
        self._told_since = self._told_since or now
        if now - self._told_since > _GRACE_SECONDS:
            self._leave(told.code)

    def _end_stalled(self, *, answers: bool) -> None:
        failure = PeerError(
            f"the run stood still for {self._timeout_seconds:g} s: {self._culprits(answers)}",
            hint="a process that hangs, a frozen machine or a broken network; every checkpoint "
            "written so far is intact: run the same command again, with a longer --ddp-timeout if "
            "it was only slow",
            exit_code=ExitCode.DEVICE,
        )
        # Without the store nobody can be asked who speaks: the lowest rank that is left does.
        is_first = (
            self._board.tell(self._processes.rank, failure) is None
            if answers
            else self._processes.rank == 1
        )
        if is_first:
            self._say(failure)
        self._leave(int(failure.exit_code))

    def _culprits(self, answers: bool) -> str:
        try:
            marks = self._board.marks() if answers else {}
        except RuntimeError:
            marks = {}
        if not marks:
            return "rank 0 does not answer"
        counts = {rank: marks.get(rank, (0, ""))[0] for rank in range(self._processes.size)}
        behind = [rank for rank, count in counts.items() if count < max(counts.values())]
        if not behind:
            return f"no rank went on after {self._what}"
        names = ", ".join(str(rank) for rank in behind[:8]) + (" ..." if len(behind) > 8 else "")
        return (
            f"rank{'s' if len(behind) > 1 else ''} {names} did not come to what the others wait for"
        )
