"""Why a run ended before its end, for run.json and the report."""

from typing import Any

from lorafit.errors import ExitCode, LorafitError
from lorafit.report.run_record import Status

_CODES: dict[Status, ExitCode] = {
    "out_of_memory": ExitCode.DEVICE,
    "interrupted": ExitCode.INTERRUPTED,
}


def failure_facts(failure: BaseException, status: Status) -> dict[str, Any]:
    """Return `{"error", "exit_code"}` of what ended a run.

    The words are the first line of its message, or its kind where it has none; the code is the
    one that the process is about to exit with.
    """
    lines = str(failure).splitlines()
    if isinstance(failure, LorafitError):
        code = failure.exit_code
    elif isinstance(failure, OSError):
        code = ExitCode.STORAGE
    else:
        code = _CODES.get(status, ExitCode.BUG)
    return {"error": lines[0] if lines else type(failure).__name__, "exit_code": int(code)}
