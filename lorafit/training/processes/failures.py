"""Who of several processes failed first, and why: written once, read by all the others."""

import json
import threading
import time
from typing import NamedTuple

from torch.distributed import Store  # type: ignore[attr-defined]  # exported without saying so

from lorafit.errors import ExitCode, LorafitError, PeerError
from lorafit.hardware.processes import Processes

_POLL_SECONDS = 0.05


class Told(NamedTuple):
    """The failure that ended the run."""

    rank: int
    message: str
    hint: str | None
    code: int

    def error(self) -> PeerError:
        """Return it as an error of this process, which has been said already."""
        return PeerError(
            f"rank {self.rank}: {self.message}",
            hint=self.hint,
            exit_code=ExitCode(self.code),
            is_told=True,
        )


class FailureBoard:
    """A place in the processes' common store; whoever can no longer reach it reads nothing."""

    def __init__(self, store: Store, processes: Processes) -> None:
        """Use a connection of its own, as another thread may wait in the group's."""
        self._store = store
        self._processes = processes
        self._lock = threading.Lock()

    def tell(self, rank: int, failure: BaseException) -> Told | None:
        """Write why `rank` fails; None: it is the first, else what the first one wrote."""
        code = failure.exit_code if isinstance(failure, LorafitError) else ExitCode.BUG
        hint = failure.hint if isinstance(failure, LorafitError) else None
        document = {"rank": rank, "message": str(failure), "hint": hint, "code": int(code)}
        try:
            with self._lock:
                if self._store.add("failed", 1) == 1:
                    self._store.set("failure", json.dumps(document))
                    return None
            return self.wait(2.0)
        except RuntimeError:
            return None

    def read(self) -> Told | None:
        """Return the failure, if one was told.

        Raises:
            RuntimeError: the store does not answer.
        """
        with self._lock:
            if not self._store.check(["failure"]):
                return None
            return Told(**json.loads(self._store.get("failure")))

    def wait(self, seconds: float) -> Told | None:
        """Return the failure as soon as it is told; None after `seconds` without.

        Raises:
            RuntimeError: the store does not answer.
        """
        deadline = time.monotonic() + seconds
        while True:
            told = self.read()
            if told is not None or time.monotonic() > deadline:
                return told
            time.sleep(_POLL_SECONDS)

    # -- Marks of progress -----------------------------------------------------------------

    def mark(self, count: int, what: str) -> None:
        """Publish how far this process is.

        Raises:
            RuntimeError: the store does not answer.
        """
        with self._lock:
            self._store.set(f"mark/{self._processes.rank}", json.dumps([count, what]))

    def marks(self) -> dict[int, tuple[int, str]]:
        """Return how far each process is: exchanges that it took part in, and the last of them.

        Raises:
            RuntimeError: the store does not answer.
        """
        found = {}
        with self._lock:
            for rank in range(self._processes.size):
                if self._store.check([f"mark/{rank}"]):
                    count, what = json.loads(self._store.get(f"mark/{rank}"))
                    found[rank] = (count, what)
        return found

    def leave(self, *, patience_seconds: float) -> None:
        """Say that this process has read all it wants, and wait for the others to say so too.

        Process 0 serves the store: were it gone at once, the others could not read why.
        """
        deadline = time.monotonic() + patience_seconds
        try:
            with self._lock:
                gone = self._store.add("left", 1)
                while gone < self._processes.size and time.monotonic() < deadline:
                    time.sleep(_POLL_SECONDS)
                    gone = self._store.add("left", 0)
        except RuntimeError:
            return
