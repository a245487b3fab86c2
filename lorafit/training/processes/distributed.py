"""What the processes of a run say to each other: gradients, decisions, and who failed.

Every process holds the whole adapter and takes its share of the rows of each step. The Trainer and
accelerate see one process on one device: nothing between loader and optimizer depends on how many
there are. What is exchanged is exchanged here, after the last micro-batch of a step, so that a
process that runs out of memory in the middle of a step leaves no other one waiting in a gradient
exchange; adapters are small, and overlapping it with the backward pass would gain little. Where
base weights are shared too, `sharding` gathers them, within the steps.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed
from torch.distributed import (  # type: ignore[attr-defined]  # exported without saying so
    PrefixStore,
    Store,
    TCPStore,
)

from lorafit.data.micro_batches import StepRows
from lorafit.errors import (
    DeviceError,
    DivergedError,
    ExitCode,
    LorafitError,
    PeerError,
    RunInterruptedError,
)
from lorafit.hardware.processes import VARIABLES, Processes
from lorafit.memory.data_parallel import BUCKET_BYTES
from lorafit.text import excerpt
from lorafit.training.processes.failures import FailureBoard, Told
from lorafit.training.processes.watchdog import Watchdog

_SLACK_SECONDS = 60
"""How much longer a library waits than the watchdog, whose message names the culprit."""
_SECOND_WORD_SECONDS = {False: 2.0, True: 15.0}
"""How long another process leaves the word to the first: longer where both surely have it."""
# accelerate and MPI start-up code would take them for a call to set up processes of their own.
_HIDDEN = (*VARIABLES, "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class World:
    """The processes of a run, seen from one of them; alone, every exchange is the identity."""

    def __init__(
        self,
        processes: Processes | None = None,
        board: FailureBoard | None = None,
        watchdog: Watchdog | None = None,
        store: Store | None = None,
    ) -> None:
        """Stand for `processes` whose group is open already; use `open_world`."""
        self.processes = processes or Processes()
        self.rank, self.size = self.processes.rank, self.processes.size
        self._board = board
        self._watchdog = watchdog
        # In process 0 it is what serves the others: it must outlive the group, which would else
        # be its only owner, until all of them have left.
        self._store = store
        self._rooms: dict[torch.dtype, torch.Tensor] = {}

    @property
    def is_main(self) -> bool:
        """Whether this process speaks and writes for all of them."""
        return self.rank == 0

    # -- Rows ------------------------------------------------------------------------------

    def share_of(self, rows: StepRows) -> StepRows:
        """Return the rows of a step that this process takes: as many as the others, or one more.

        A short last step may leave nothing for some processes.
        """
        count = len(rows.units)
        first, last = (count * r // self.size for r in (self.rank, self.rank + 1))
        return StepRows(rows.units[first:last])

    def largest_share(self, rows: StepRows) -> list[int]:
        """Return lengths that no share of the step exceeds, the same in every process."""
        lengths = rows.lengths
        if self.size == 1:
            return lengths
        return [max(lengths)] * -(-len(lengths) // self.size)

    # -- Exchanges -------------------------------------------------------------------------

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process."""
        return bool(self.largest(int(flag)))

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, dtype=torch.int64)
        with self._guarded("agreeing"):
            distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
        return int(shared)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of the processes' numbers, position by position, in float64."""
        if self.size == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64)
        with self._guarded("adding"):
            distributed.all_reduce(shared)
        found: list[float] = shared.tolist()
        return found

    def meet(self) -> None:
        """Wait until every process is here."""
        self.any(False)

    def decide(self, decision: Callable[[], Any]) -> Any:
        """Return what `decision` gives in process 0, in every process; it must be JSON."""
        if self.size == 1:
            return decision()
        text = json.dumps(decision()) if self.is_main else ""
        return json.loads(self.gather(text.encode())[0])

    def gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all processes, by rank."""
        if self.size == 1:
            return [payload]
        longest = self.largest(len(payload))
        padded = torch.zeros(longest + 8, dtype=torch.uint8)
        packed = len(payload).to_bytes(8, "big") + payload
        padded[: len(packed)] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        with self._guarded("gathering"):
            distributed.all_gather(found, padded)
        texts = [tensor.numpy().tobytes() for tensor in found]
        return [text[8 : 8 + int.from_bytes(text[:8], "big")] for text in texts]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by the sum over all processes; one that is absent counts as 0.

        Every process gets the same bits, so that parameters stay equal without being exchanged.
        """
        if self.size == 1:
            return
        with self._guarded("exchanging gradients"):
            buckets = _buckets(parameters)
            for bucket in buckets:
                flat = self._flat(bucket, buckets)
                for parameter, piece in zip(bucket, _pieces(flat, bucket), strict=True):
                    if parameter.grad is None:
                        piece.zero_()
                    else:
                        piece.copy_(parameter.grad.flatten())
                distributed.all_reduce(flat)
                for parameter, piece in zip(bucket, _pieces(flat, bucket), strict=True):
                    if parameter.grad is None:
                        parameter.grad = torch.empty_like(parameter)
                    parameter.grad.copy_(piece.view_as(parameter))

    @torch.no_grad()
    def align(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give every process the parameters of process 0."""
        if self.size == 1:
            return
        with self._guarded("sharing the adapter"):
            buckets = _buckets(parameters)
            for bucket in buckets:
                flat = self._flat(bucket, buckets)
                for parameter, piece in zip(bucket, _pieces(flat, bucket), strict=True):
                    piece.copy_(parameter.flatten())
                distributed.broadcast(flat, src=0)
                for parameter, piece in zip(bucket, _pieces(flat, bucket), strict=True):
                    parameter.copy_(piece.view_as(parameter))

    def _flat(self, bucket: "Bucket", buckets: Sequence["Bucket"]) -> torch.Tensor:
        """Return room for a bucket; it is kept, so that no later exchange can lack memory."""
        like = bucket[0]
        room = max(_count(other) for other in buckets if other[0].dtype == like.dtype)
        known = self._rooms.get(like.dtype)
        if known is None or known.numel() < room:
            known = self._rooms[like.dtype] = torch.empty(
                room, dtype=like.dtype, device=like.device
            )
        return known[: _count(bucket)]

    # -- Failures --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turn what a library says when another process is gone into what happened to it.

        Raises:
            PeerError: with the error of the process that failed first, where it told it.
        """
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as problem:
            raise self._loss_of_peers(problem, what) from problem
        if self._watchdog is not None:
            self._watchdog.mark(what)

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Context of computing in which weights are gathered; other errors of it stay themselves.

        Raises:
            PeerError: as the exchanges.
        """
        try:
            yield
        except RuntimeError as problem:
            if not _is_of_a_library_between_processes(problem):
                raise
            raise self._loss_of_peers(problem, "gathering weights") from problem

    def _loss_of_peers(self, problem: RuntimeError, what: str) -> PeerError:
        assert self._board is not None
        told = None
        with contextlib.suppress(RuntimeError):
            told = self._board.wait(3.0)
        if told is not None:
            return told.error()
        line = (str(problem) or type(problem).__name__).splitlines()[0]
        return PeerError(
            f"rank {self.rank} lost the other processes while {what}: {excerpt(line, 160)}",
            hint="one of them was ended or cannot be reached; every checkpoint written so far is "
            "intact: run the same command again",
            exit_code=ExitCode.DEVICE,
        )

    def report(self, failure: BaseException) -> None:
        """Tell the others why this process ends; who tells it first is the one who says it.

        Raises:
            SystemExit: another process says it; with that one's exit code.
        """
        if self._board is None or isinstance(failure, SystemExit | KeyboardInterrupt):
            return
        if isinstance(failure, RunInterruptedError):
            return  # all of them end in the same way
        if isinstance(failure, PeerError) and failure.is_told:
            raise SystemExit(int(failure.exit_code))
        if self.is_main:
            told = self._board.tell(self.rank, failure)
        else:
            told = self._second_word(self._board, failure)
        if told is not None:
            raise SystemExit(told.code)

    def _second_word(self, board: FailureBoard, failure: BaseException) -> Told | None:
        """Return what was told before, after process 0 had time to say what strikes all alike."""
        try:
            told = board.wait(_SECOND_WORD_SECONDS[isinstance(failure, DivergedError)])
            return board.tell(self.rank, failure) if told is None else told
        except RuntimeError:
            if isinstance(failure, PeerError):
                return None
            # Process 0, which served the store, ended before: with the same error.
            code = failure.exit_code if isinstance(failure, LorafitError) else ExitCode.BUG
            return Told(0, str(failure), None, int(code))

    def close(self, *, lost: bool = False) -> None:
        """Leave the group, process 0 last: the others may still read what it serves.

        With `lost` another process is gone, and is not waited for.
        """
        if self._watchdog is not None:
            self._watchdog.stop()
        if distributed.is_initialized():
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()
        if self._board is not None:
            self._board.leave(patience_seconds=20.0 if self.is_main and not lost else 0.0)
        self._store = None


def _is_of_a_library_between_processes(problem: RuntimeError) -> bool:
    # gloo raises plain errors, with the path of its source in front.
    return isinstance(problem, distributed.DistError) or "gloo" in str(problem)


Bucket = list[torch.nn.Parameter]


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> list[Bucket]:
    """Return the parameters in order, split where `BUCKET_BYTES` are full or the dtype changes."""
    buckets: list[Bucket] = []
    used = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        is_full = used + size > BUCKET_BYTES
        if not buckets or is_full or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            used = 0
        buckets[-1].append(parameter)
        used += size
    return buckets


def _count(bucket: Bucket) -> int:
    return sum(parameter.numel() for parameter in bucket)


def _pieces(flat: torch.Tensor, bucket: Bucket) -> Sequence[torch.Tensor]:
    return torch.split(flat, [parameter.numel() for parameter in bucket])


@contextlib.contextmanager
def open_world(processes: Processes, device_kind: str, timeout_seconds: int) -> Iterator[World]:
    """Context in which the processes of a run know each other; alone, nothing is opened.

    An error that another process has told already leaves as SystemExit with its exit code.

    Args:
        processes: the place of this one.
        device_kind: where it trains: gradients travel by NCCL on `cuda`, else by gloo.
        timeout_seconds: after so long without progress the run is ended.

    Raises:
        DeviceError: the processes do not find each other.
    """
    if processes.size == 1:
        with _hidden_variables(()):
            yield World()
        return
    with _hidden_variables(_HIDDEN) as environ:
        world = _join(processes, environ, device_kind, timeout_seconds)
        lost = False
        try:
            yield world
        except BaseException as failure:
            lost = isinstance(failure, PeerError) and not failure.is_told
            world.report(failure)
            raise
        finally:
            world.close(lost=lost)


@contextlib.contextmanager
def _hidden_variables(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Context in which libraries see neither `names` nor what `accelerate launch` told."""
    before = dict(os.environ)
    # The configuration has been read from them: taken once more, they would make the libraries
    # compute in another precision, or call for an engine.
    hidden = [name for name in before if name in names or name.startswith("ACCELERATE_")]
    for name in hidden:
        del os.environ[name]
    try:
        yield before
    finally:
        os.environ.update({name: before[name] for name in hidden})


def _join(
    processes: Processes, environ: dict[str, str], device_kind: str, timeout_seconds: int
) -> World:
    host, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    # torchrun's agent already serves the store that its processes meet at.
    serves = processes.rank == 0 and environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    attempt = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    timeout = datetime.timedelta(seconds=timeout_seconds)

    def connect(is_master: bool, patience: datetime.timedelta) -> Store:
        store = TCPStore(host, port, None, is_master, timeout=patience, wait_for_workers=False)
        return PrefixStore(f"lorafit/{attempt}", store)

    try:
        store = connect(serves, timeout)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device_kind == "cuda" else "gloo",
            store=store,
            rank=processes.rank,
            world_size=processes.size,
            timeout=timeout + datetime.timedelta(seconds=_SLACK_SECONDS),
        )
        beside = connect(False, datetime.timedelta(seconds=5))
    except (RuntimeError, ValueError, OSError) as problem:
        line = (str(problem) or type(problem).__name__).splitlines()[0]
        raise DeviceError(
            f"rank {processes.rank} of {processes.size} did not find the other processes at "
            f"{host}:{port} within {timeout_seconds} s: {excerpt(line, 160)}",
            hint="start every machine's command; the port of the main machine must be free and "
            "reachable, and --num-machines the same everywhere",
        ) from problem
    board = FailureBoard(beside, processes)
    watchdog = Watchdog(processes, board, timeout_seconds)
    watchdog.start()
    return World(processes, board, watchdog, store)
