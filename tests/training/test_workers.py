"""Processes that fetch rows, when the process that they fetch them for is killed."""

import signal
import subprocess
import sys
import time

import psutil
import pytest
from tiny import child_environment

KILLED = """
import multiprocessing
import sys

from accelerate import Accelerator
from torch.utils.data import DataLoader
from lorafit.training.workers import with_ending_workers

def begin(number):
    print(f"begun {number}", flush=True)

def main(method):
    loader = DataLoader(
        list(range(100)), batch_size=1, num_workers=1, multiprocessing_context=method,
        worker_init_fn=begin,
    )
    loader = Accelerator(cpu=True).prepare(loader)  # as transformers' Trainer does
    batches = iter(with_ending_workers(loader))
    next(batches)
    print("pids", *(worker.pid for worker in multiprocessing.active_children()), flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.parametrize(
    "method", ["forkserver", *(pytest.param(m, marks=pytest.mark.slow) for m in ("fork", "spawn"))]
)
def test_data_workers_end_with_a_process_that_is_killed(tmp_path, method):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    process = subprocess.Popen(
        [sys.executable, str(script), method], env=child_environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        said = []
        while not said or not said[-1].startswith("pids"):
            said.append(process.stdout.readline())
            assert said[-1], "it ended"
        workers = [psutil.Process(int(pid)) for pid in said[-1].split()[1:]]
        assert workers
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 120
        while any(map(_is_alive, workers)):
            assert time.monotonic() < deadline, f"{workers} are still there"
            time.sleep(0.1)
        # What the loader was given to begin them with was called too.
        assert "begun 0\n" in {*said, *process.stdout.readlines()}
    finally:
        process.kill()
        process.communicate()


def _is_alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
