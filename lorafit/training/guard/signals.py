"""A request to stop: the step is finished and saved; a second request stops at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from lorafit.errors import ExitCode

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class StopRequest:
    """Context in which SIGINT, SIGTERM and SIGHUP ask for a stop.

    Before the first step there is nothing to save, and they end the run at once; from
    `begin_saving` on, they ask for a stop at the end of the step.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._saves = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def begin_saving(self) -> None:
        """From now on there is something to save."""
        self._saves = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED
        if self.received is not None:
            # Checkpoints are published by one rename, so that leaving here breaks none.
            os._exit(code)
        self.received = signal.Signals(number)
        if not self._saves:
            raise SystemExit(int(code))
