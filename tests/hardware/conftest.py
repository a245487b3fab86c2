import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def run_python():
    """Run code in a fresh interpreter and fail with its output when it fails."""

    def run(code: str, **environ: str) -> str:
        root = str(Path(__file__).resolve().parents[2])
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": root, **environ},
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run
