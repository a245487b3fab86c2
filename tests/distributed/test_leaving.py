"""The end of a group of processes: the one that serves the others is the last to go."""

import os
import subprocess
import sys

import pytest

from distributed.conftest import free_port

MEMBER = """
import gc, os, time
from lorafit.hardware.processes import Processes
from lorafit.training.processes.distributed import open_world

rank = int(os.environ["RANK"])
with open_world(Processes(rank, 2, rank, 2), "cpu", 300) as world:
    world.meet()
    time.sleep(float(os.environ["LINGER"]) if rank == int(os.environ["LAST"]) else 0)
    gc.collect()
"""


@pytest.mark.parametrize("last", [0, 1])
def test_nobody_finds_the_store_gone_whoever_leaves_last(last):
    environ = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_PORT": str(free_port()), "LAST": str(last), "LINGER": "2.5",
    }  # fmt: skip
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER],
            env={**environ, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [member.communicate(timeout=600)[1] for member in members]
    assert [(member.returncode, text) for member, text in zip(members, said, strict=True)] == [
        (0, ""),
        (0, ""),
    ]
