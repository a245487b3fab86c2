"""What a `World` computes by itself, and what it is for a process alone."""

import time

import pytest
import torch

from lorafit.data.micro_batches import StepRows
from lorafit.errors import DeviceError, ExitCode, PeerError
from lorafit.hardware.processes import Processes
from lorafit.memory import data_parallel
from lorafit.memory.data_parallel import bucket_bytes
from lorafit.training.processes import distributed
from lorafit.training.processes.distributed import World, open_world
from lorafit.training.processes.failures import Told
from lorafit.training.processes.watchdog import Watchdog


def rows(*lengths):
    return StepRows(tuple(({"input_ids": [1] * n, "labels": [1] * n},) for n in lengths))


@pytest.mark.parametrize("count", range(12))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_row_is_in_one_share_and_none_is_larger_by_two(count, size):
    step = rows(*range(1, count + 1))
    shares = [World(Processes(rank, size)).share_of(step) for rank in range(size)]
    assert [unit for share in shares for unit in share.units] == [*step.units]
    counts = [len(share.units) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_no_share_exceeds_the_largest_one():
    step = rows(5, 9, 2, 2, 7)
    largest = World(Processes(0, 2)).largest_share(step)
    assert largest == [8, 8, 8]
    assert World().largest_share(step) == [4, 8, 1, 1, 6]  # what is read of each


def test_a_process_alone_exchanges_nothing():
    world = World()
    parameter = torch.nn.Parameter(torch.ones(2))
    world.sum_gradients([parameter])
    world.align([parameter])
    world.meet()
    assert parameter.grad is None
    assert world.is_main
    assert world.any(True)
    assert not world.any(False)
    assert world.sums([1.5, 2.0]) == [1.5, 2.0]
    assert world.gather(b"x") == [b"x"]
    assert world.decide(lambda: {"a": 1}) == {"a": 1}
    with open_world(Processes(), "cpu", 5) as alone:
        assert alone.size == 1


def test_the_memory_of_the_exchange_is_that_of_the_largest_bucket(monkeypatch):
    monkeypatch.setattr(distributed, "BUCKET_BYTES", 100)
    monkeypatch.setattr(data_parallel, "BUCKET_BYTES", 100)
    sizes = [10, 12, 5, 30, 2, 20]
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    buckets = distributed._buckets(parameters)
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[10, 12], [5], [30], [2, 20]]
    assert bucket_bytes(sizes) == 4 * 30
    world = World()
    for bucket in buckets:
        world._flat(bucket, buckets)
    assert sum(room.nbytes for room in world._rooms.values()) == bucket_bytes(sizes)


def test_a_main_process_that_is_not_there_is_a_device_error(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with (
        pytest.raises(DeviceError, match=r"rank 1 of 2 did not find .* 127.0.0.1:1 within 1 s"),
        open_world(Processes(1, 2, 1, 2), "cpu", 1),
    ):
        pass


def test_a_failure_that_was_told_carries_its_rank_words_and_code():
    error = Told(3, "the disk is full", "free space", 7).error()
    assert str(error) == "rank 3: the disk is full"
    assert (error.exit_code, error.hint, error.is_told) == (ExitCode.STORAGE, "free space", True)


@pytest.mark.parametrize(
    "problem",
    [
        RuntimeError(
            "[/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
        ),
        torch.distributed.DistBackendError("NCCL communicator was aborted"),
    ],
)
def test_a_peer_that_is_gone_while_weights_are_gathered_is_a_lost_peer(problem):
    told = Told(1, "the disk is full", "free space", 7)
    for board, message, code in (
        (Board({}), "rank 0 lost the other processes while gathering weights", 4),
        (Board({}, told), "rank 1: the disk is full", 7),
    ):
        world = World(Processes(0, 2), board)
        with pytest.raises(PeerError, match=message) as lost, world.gathering():
            raise problem
        assert lost.value.exit_code == code


@pytest.mark.parametrize(
    "problem", [RuntimeError("shapes do not match"), torch.OutOfMemoryError("out of memory")]
)
def test_other_errors_of_computing_stay_what_they_are(problem):
    with pytest.raises(type(problem), match=str(problem)), World(Processes(0, 2)).gathering():
        raise problem


class Board:
    """The common store, as a process sees it whose peers are as given."""

    def __init__(self, marks, told=None):
        self._marks, self._told, self.own = marks, told, None

    def mark(self, count, what):
        self.own = (count, what)

    def marks(self):
        return {**self._marks, 0: self.own}

    def read(self):
        return self._told

    def wait(self, seconds):
        return self._told

    def tell(self, rank, failure):
        return None


def watch(board, timeout, monkeypatch):
    monkeypatch.setattr("lorafit.training.processes.watchdog._PERIOD_SECONDS", 0.02)
    monkeypatch.setattr("lorafit.training.processes.watchdog._GRACE_SECONDS", 0.05)
    said, left = [], []
    watchdog = Watchdog(Processes(0, 3), board, timeout, say=said.append, leave=left.append)
    watchdog.start()
    watchdog.mark("adding")
    deadline = time.monotonic() + 60
    while not left and time.monotonic() < deadline:
        time.sleep(0.01)
    watchdog.stop()
    return said, left


def test_the_watchdog_names_the_process_that_is_behind(monkeypatch):
    (failure,), left = watch(Board({1: (1, "adding"), 2: (0, "starting")}), 1, monkeypatch)
    assert isinstance(failure, PeerError)
    assert "stood still for 1 s: rank 2 did not come to what the others wait for" in str(failure)
    assert left == [4]


def test_the_watchdog_says_so_where_nobody_is_behind(monkeypatch):
    (failure,), _ = watch(Board({1: (1, "adding"), 2: (1, "adding")}), 1, monkeypatch)
    assert "no rank went on after adding" in str(failure)


def test_the_watchdog_ends_a_process_that_cannot_see_that_another_failed(monkeypatch):
    said, left = watch(Board({}, Told(2, "the disk is full", None, 7)), 60, monkeypatch)
    assert said == []
    assert left[0] == 7
