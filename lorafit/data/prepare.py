"""From a large file to mapped rows: one pass that reads, validates, tokenizes and stores.

This process reads, checks and writes; others tokenize, a batch each at a time. At no moment is
more of the file held than the batches on their way.
"""

import contextlib
import os
import signal
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorafit.config.schema import Settings
from lorafit.data.columns import COLUMNS, Block, RowBuilder
from lorafit.data.dataset import TokenizedDataset
from lorafit.data.fingerprint import file_state, hash_file, verify_unchanged
from lorafit.data.problems import Problems
from lorafit.data.progress import Tell, tell_nobody
from lorafit.data.reading import iterate_rows, number_of
from lorafit.data.records import Record, RecordReader, SourceFacts
from lorafit.data.sources import FileSource
from lorafit.data.store import NUMBERS, RowStore, entry_key, write_index
from lorafit.data.tokenize import RowTokenizer, batches
from lorafit.errors import MemoryFitError, StorageError
from lorafit.files import free_bytes, sync_file
from lorafit.hardware.processes import end_with_parent
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_WORKERS = 16
"""Processes that tokenize, at most: one that reads cannot feed more."""
_BATCHES_A_WORKER = 3

WAITING = "another process tokenizes the data"


@dataclass(frozen=True)
class PreparedRows:
    """The rows of a large file."""

    dataset: TokenizedDataset
    facts: SourceFacts
    sha256: str


def prepare_rows(
    source: FileSource, settings: Settings, tokenizer: Any, tell: Tell = tell_nobody
) -> PreparedRows:
    """Return the tokenized rows of a file, mapped; they are stored if they are not yet.

    Raises:
        DataError: as `read_records`, or the file changed meanwhile.
        ModelError: the tokenizer has no end-of-text token.
        StorageError: the rows do not fit on the disk, or the cache cannot be written.
        MemoryFitError: the system ended a process that tokenizes.
    """
    state = file_state(source)
    problems = Problems(source.name)
    reader = RecordReader(iterate_rows(source, problems), source.name, settings, problems)
    batched = batches(reader)
    # What makes the whole file unusable mostly shows in its first rows.
    first = next(batched)
    tokenize = RowTokenizer(tokenizer, settings, is_chat=first[0].messages is not None)
    if not reader.is_sound:
        deque(batched, maxlen=0)  # raises, with all problems counted
    sha256 = hash_file(source, lambda share: tell("reading the data", share, 0))
    key = entry_key(source, sha256, tokenizer, settings, tokenize.chat_template)
    store = RowStore()
    if not store.is_ready(key):
        work = _work(first, batched, reader)
        with store.being_written(key, lambda: tell(WAITING, 0.0, 0)) as room:
            if room is not None:
                _write(work, reader, tokenize, room, tell)
                verify_unchanged(source, state)
    verify_unchanged(source, state)
    dataset, facts = store.open(key, source, state, settings)
    return PreparedRows(dataset, facts, sha256)


class Work(NamedTuple):
    """Records to tokenize, and the share of the file that is read with the last of them."""

    records: list[Record]
    done: float


def _work(
    first: list[Record], others: Iterable[list[Record]], reader: RecordReader
) -> Iterator[Work]:
    yield Work(first, reader.done)
    for records in others:
        yield Work(records, reader.done)


def _write(
    work: Iterable[Work], reader: RecordReader, tokenize: RowTokenizer, folder: Path, tell: Tell
) -> None:
    faults = Problems("the data")
    written = 0
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context((folder / name).open("wb")) for name in (*COLUMNS, NUMBERS)
        }
        builder = RowBuilder(files.__getitem__)
        tell("tokenizing the data", 0.0, 0)
        for (records, done), block in tokenize_in_parallel(work, tokenize, reader):
            for fault in block.faults:
                faults.add(*fault)
            written += builder.add(block, records)
            numbers = array("q", (number_of(records[n].source) for n in block.kept))
            written += files[NUMBERS].write(numbers)
            _require_space(folder, written, done)
            tell("tokenizing the data", done, builder.rows)
    # Raised after the last row: by then all problems are counted.
    faults.raise_if_any()
    for name in files:
        sync_file(folder / name)
    write_index(folder, reader.facts(), builder.tally)


def _require_space(folder: Path, written: int, done: float) -> None:
    """Refuse what will not fit, as far as the rows so far tell how much is to come.

    Raises:
        StorageError: with the bytes that are needed and free.
    """
    to_come = int(written / done) - written if done else 0
    free = free_bytes(folder)
    if to_come <= free:
        return
    raise StorageError(
        f"the tokenized rows need about {format_bytes(written + to_come)} on the disk, and "
        f"{format_bytes(free + written)} are free",
        where=str(folder.parent),
        hint="remove what is not needed there, or name a folder with room: "
        "LORAFIT_CACHE_DIR=FOLDER lorafit ...",
    )


def tokenize_in_parallel(
    work: Iterable[Work], tokenize: RowTokenizer, reader: RecordReader
) -> Iterator[tuple[Work, Block]]:
    """Yield each piece of work with its rows, in order; a few of them are under way at a time.

    Once the reader has found something wrong, rows are only read, for what else is wrong.

    Raises:
        MemoryFitError: the system ended a process that tokenizes.
    """
    # Not for those who have a small file.
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    num_workers = max(1, min(MAX_WORKERS, _num_cpus()))
    waiting: deque[tuple[Work, Future[Block]]] = deque()
    pool = ProcessPoolExecutor(
        num_workers, get_context("spawn"), initializer=_start_worker, initargs=(tokenize,)
    )
    try:
        for piece in work:
            if not reader.is_sound:
                continue
            waiting.append((piece, pool.submit(_tokenize, piece.records)))
            while len(waiting) >= _BATCHES_A_WORKER * num_workers or waiting[0][1].done():
                yield _result(*waiting.popleft())
                if not waiting:
                    break
        while waiting:
            yield _result(*waiting.popleft())
    except BrokenProcessPool:
        raise MemoryFitError(
            "the system ended a process that tokenizes, most likely because memory ran out",
            hint="free memory and run the same command again",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _result(piece: Work, future: "Future[Block]") -> tuple[Work, Block]:
    return piece, future.result()


def _num_cpus() -> int:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -- In the processes that tokenize --------------------------------------------------------------

_tokenizers: list[RowTokenizer] = []


def _start_worker(tokenize: RowTokenizer) -> None:
    # An interrupt reaches all processes of a terminal: the one that reads ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Each is one of many already.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    end_with_parent()
    _tokenizers.append(tokenize)


def _tokenize(records: Sequence[Record]) -> Block:
    return _tokenizers[0].block(records)
