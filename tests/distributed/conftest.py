"""Runs of several processes: forked from one that has everything imported, or really launched."""

import json

import pytest
from processes import ForkServer
from tiny import colour_rows, write_jsonl

from lorafit.cli.launch import free_port
from lorafit.report.events import read_events

# What processes must agree on with one that trains alone; float32 sums differ in their last bits.
CLOSE = ("loss", "learning_rate", "grad_norm", "validation_loss")
EQUAL = ("step", "epoch", "tokens", "supervised_tokens")
STATE = ("adapter_model.safetensors", "optimizer.safetensors", "scheduler.json", "rng.safetensors",
         "rng-1.safetensors")  # fmt: skip


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory, cache_folder):
    return ForkServer(tmp_path_factory.mktemp("ranks"), LORAFIT_CACHE_DIR=str(cache_folder))


@pytest.fixture
def start_ranks(fork_server):
    """Return a function that starts the same command as the processes of one run."""

    def start(arguments, size=2, faults=None):
        port = free_port()
        return [
            fork_server.start(
                *arguments, fault=(faults or {}).get(rank), RANK=str(rank), LOCAL_RANK=str(rank),
                WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo",
            )
            for rank in range(size)
        ]  # fmt: skip

    return start


@pytest.fixture
def run_ranks(start_ranks):
    """Return a function that runs a command in several processes to its end."""

    def run(arguments, size=2, faults=None, timeout=600):
        return [ranks.wait(timeout) for ranks in start_ranks(arguments, size, faults)]

    return run


@pytest.fixture
def share_arguments(train_arguments, tiny_model, tmp_path_factory):
    """Return a factory of `train` arguments of a run whose rows several processes share.

    18 rows at 8 a step: the last step of each epoch has 2 rows. Nothing is random.
    """
    data = write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", colour_rows(20))

    def make(run_dir, *more, **changes):
        settings = {
            "model": tiny_model(resid_pdrop=0.0), "data": data, "lora_dropout": 0,
            "gradient_accumulation_steps": None, "effective_batch_size": 8, "max_steps": None,
            "num_train_epochs": 2, "report_to": "tensorboard", "ddp_timeout": 60,
        }  # fmt: skip
        return train_arguments(run_dir, *more, **{**settings, **changes})

    return make


def assert_close_runs(one, other, tolerance=1e-5):
    """Assert that two runs took the same steps over the same rows with the same losses."""
    left, right = read_events(one), read_events(other)
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert [a[name] for name in EQUAL] == [b[name] for name in EQUAL]
        close = [[event[name] for name in CLOSE if name in event] for event in (a, b)]
        assert close[0] == pytest.approx(close[1], abs=tolerance)


def assert_same_end(one, other, step):
    """Assert that two runs ended in the same bits, the random states of both processes included."""
    for name in STATE:
        left, right = ((run / f"checkpoint-{step}" / name).read_bytes() for run in (one, other))
        assert left == right, name
    numbers = [
        [[event[name] for name in (*EQUAL, *CLOSE[:3])] for event in read_events(run)]
        for run in (one, other)
    ]
    assert numbers[0] == numbers[1]


def record_of(run_dir):
    return json.loads((run_dir / "run.json").read_text())
