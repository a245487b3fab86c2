"""Several processes, one voice: the first one speaks, another only where it alone knows why."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from lorafit.cli import console
from lorafit.cli.supervise import VARIABLE
from lorafit.errors import LorafitError, PeerError, RunInterruptedError
from lorafit.hardware.processes import Processes

_FIRST_WORD_SECONDS = 5.0
"""How long the first process may take to say an error that all of them have."""


class Voice:
    """Whether this process has met the others."""

    has_joined = False


@contextlib.contextmanager
def one_voice(here: Processes) -> Iterator[Voice]:
    """Context in which every process but the first is silent, until it alone has an error to say.

    Raises:
        SystemExit: another process says the error.
    """
    voice = Voice()
    if here.size == 1:
        yield voice
        return
    _end_with_launcher()
    if here.rank > 0:
        console.silence()
    try:
        yield voice
    except RunInterruptedError as stopped:
        if here.rank > 0:
            raise SystemExit(int(stopped.exit_code)) from None
        raise
    except PeerError as lost:
        # Our launcher sees which process is gone, and says it.
        if VARIABLE in os.environ and here.is_on_one_machine and lost.hint is not None:
            raise SystemExit(int(lost.exit_code)) from None
        _speak(here, voice, lost)
        raise
    except LorafitError as failure:
        _speak(here, voice, failure)
        raise
    except Exception as bug:
        _speak(here, voice, bug)
        raise


def _speak(here: Processes, voice: Voice, failure: Exception) -> None:
    if here.rank == 0:
        return
    if not voice.has_joined:
        # Very likely the first process meets the same and says it; its end ends this one.
        time.sleep(_FIRST_WORD_SECONDS)
    console.speak()
    if not str(failure).startswith("rank "):
        failure.args = (f"rank {here.rank}: {failure}",)


def _end_with_launcher() -> None:
    """Ask this process to stop when the launcher is gone, however that ended."""
    descriptor = os.environ.pop(VARIABLE, "")
    if not descriptor.isdigit():
        return
    os.environ[VARIABLE] = "gone"  # what this process starts has no such descriptor

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(int(descriptor), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lorafit-launcher", daemon=True).start()
