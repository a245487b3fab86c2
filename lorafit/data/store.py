"""Tokenized rows on the disk, for files too large to be held: written once, then mapped.

An entry is a folder named after a digest of everything that decides its rows: the file's contents,
the tokenizer and the settings that count. It is written under another name and renamed when it is
whole, so that a kill leaves nothing that looks like an entry. All processes of a machine share it:
one writes, the others wait for it and map the same pages.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.config.schema import Settings
from lorafit.data.columns import COLUMNS, KEY_BYTES, Tally
from lorafit.data.dataset import TokenizedDataset
from lorafit.data.fingerprint import verify_unchanged
from lorafit.data.problems import Problems
from lorafit.data.reading import iterate_rows, number_of, place_of
from lorafit.data.records import Record, RecordReader, SourceFacts
from lorafit.data.sources import FileSource
from lorafit.errors import StorageError
from lorafit.files import cache_folder, sync_folder, write_json
from lorafit.hardware.processes import processes_of

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[Any]]

VERSION = 1
"""Of the files' layout and of the rules by which rows become tokens."""
NUMBERS = "numbers"
"""The column of the line or row numbers in the source."""
_TYPES = {**COLUMNS, NUMBERS: "i8"}
_INDEX = "index.json"
_STAGING = ".staging-"
_LOCKS = ".locks"
_POLL_SECONDS = 0.2
_HEAD_START_SECONDS = 20.0
"""How long the other processes of a run leave the lock to the first one, which shows progress."""
_DECIDING = (
    "max_length", "train_on_prompt", "prompt_template", "completion_template", "label_field",
)  # fmt: skip


def entry_key(
    source: FileSource, sha256: str, tokenizer: Any, settings: Settings, chat_template: str | None
) -> str:
    """Return the name of the rows of a file with these contents, under these settings."""
    from importlib.metadata import version

    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else tokenizer.get_vocab()
    beginning = tokenizer("x", verbose=False)["input_ids"]
    deciding = {
        "version": VERSION,
        "data": [source.format, sha256],
        "tokenizer": [type(tokenizer).__name__, vocabulary, beginning],
        "special": [sorted(tokenizer.all_special_tokens), tokenizer.eos_token_id],
        "settings": {name: getattr(settings, name) for name in _DECIDING},
        "chat_template": chat_template,
        "libraries": [version("transformers"), version("tokenizers")],
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


class RowStore:
    """The entries in one folder of the user's cache.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "rows"
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def is_ready(self, key: str) -> bool:
        """Return whether the entry is there and whole; what is left of a damaged one is removed."""
        index = _read_index(self.folder / key)
        if index is None:
            return False
        sizes = _sizes(index["tally"]["rows"], index["tally"]["tokens"])
        if all(_size_of(self.folder / key / name) == size for name, size in sizes.items()):
            return True
        shutil.rmtree(self.folder / key, ignore_errors=True)
        return False

    def open(
        self, key: str, source: FileSource, state: tuple[int, int, int], settings: Settings
    ) -> tuple[TokenizedDataset, SourceFacts]:
        """Return the rows of an entry that is ready; `state` is the file's when it was hashed."""
        index = _read_index(self.folder / key)
        assert index is not None
        columns = {name: _map_column(self.folder / key / name) for name in _TYPES}
        places = StoredPlaces(source, state, settings, columns.pop(NUMBERS))
        tally = dict(index["tally"])
        tally["full_lengths"] = {int(n): rows for n, rows in tally["full_lengths"].items()}
        for name in ("first_dropped", "first_dropped_special"):
            if tally[name] is not None:
                # The same file may have had another name then.
                tally[name] = tally[name].replace(index["facts"]["name"], source.name)
        facts = {**index["facts"], "name": source.name}
        facts["ignored_fields"] = tuple(facts["ignored_fields"])
        facts["labels"] = Counter(facts["labels"])
        with contextlib.suppress(OSError):
            os.utime(self.folder / key)  # when it was last of use, for whoever tidies up
        return TokenizedDataset(columns, Tally(**tally), places), SourceFacts(**facts)

    @contextlib.contextmanager
    def being_written(self, key: str, waiting: Callable[[], None]) -> Iterator[Path | None]:
        """Context with the folder to write the entry into, which is in place once it ends well.

        Nothing is to be written (None) where another process was quicker; `waiting` is called
        while another one writes.

        Raises:
            StorageError: the cache cannot be written.
        """
        staging = self.folder / f"{_STAGING}{key}"
        with storage_errors(self.folder), self._locked(key, waiting) as lock:
            if self.is_ready(key):
                yield None
                return
            self._sweep(lock, key)
            staging.mkdir()
            try:
                yield staging
                os.replace(staging, self.folder / key)
                sync_folder(self.folder)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise

    @contextlib.contextmanager
    def _locked(self, key: str, waiting: Callable[[], None]) -> Iterator[int]:
        """Context that holds the lock of an entry: a byte of one file, so that none is left."""
        is_first = processes_of(os.environ).local_rank == 0
        patience = time.monotonic() + (0.0 if is_first else _HEAD_START_SECONDS)
        descriptor = os.open(self.folder / _LOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while True:
                is_due = time.monotonic() >= patience or self.is_ready(key)
                if is_due and _try_lock(descriptor, key):
                    break
                waiting()
                time.sleep(_POLL_SECONDS)
            yield descriptor
        finally:
            os.close(descriptor)

    def _sweep(self, lock: int, own_key: str) -> None:
        """Remove what killed processes left half written."""
        for staging in self.folder.glob(f"{_STAGING}*"):
            key = staging.name.removeprefix(_STAGING)
            if key == own_key or _try_lock(lock, key):
                shutil.rmtree(staging, ignore_errors=True)


def write_index(staging: Path, facts: SourceFacts, tally: Tally) -> None:
    """Write what is known of the rows beside their columns; with it an entry is whole."""
    # asdict would count the pairs of a Counter instead of copying them.
    listed = {**vars(facts), "labels": dict(facts.labels)}
    write_json(staging / _INDEX, {"facts": listed, "tally": asdict(tally)})


@contextlib.contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn what the system says about the cache into an error for a person.

    Raises:
        StorageError: the system refused.
    """
    try:
        yield
    except OSError as problem:
        raise StorageError(
            f"tokenized rows cannot be kept: {problem.strerror or problem}",
            where=str(problem.filename or folder),
            hint="free space, or name a folder with room: LORAFIT_CACHE_DIR=FOLDER lorafit ...",
        ) from problem


def _try_lock(descriptor: int, key: str) -> bool:
    """Take the lock of an entry, unless another process has it."""
    try:
        # The operating system's: it ends with the process, however that ends.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _read_index(entry: Path) -> dict[str, Any] | None:
    try:
        index: dict[str, Any] = json.loads((entry / _INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return index


def _sizes(rows: int, tokens: int) -> dict[str, int]:
    """Return the bytes of each file of an entry."""
    items = dict.fromkeys(_TYPES, rows) | {"tokens": tokens, "keys": KEY_BYTES * rows}
    return {name: items[name] * int(kind[1:]) for name, kind in _TYPES.items()}


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _map_column(path: Path) -> "Column":
    import numpy as np

    kind = np.dtype(_TYPES[path.name])
    if not path.stat().st_size:
        return np.empty(0, kind)  # nothing cannot be mapped
    return np.memmap(path, kind, "r")


@dataclass(frozen=True)
class StoredPlaces:
    """The places of rows that are mapped: their numbers, and the file to read records from."""

    source: FileSource
    state: tuple[int, int, int]
    settings: Settings
    numbers: "Column"

    def source_of(self, index: int) -> str:
        """Return where a row came from, such as `train.jsonl:12`."""
        return place_of(self.source, int(self.numbers[index]))

    def records_of(self, indices: "Column | None") -> Sequence[Record]:
        """Return the records of some rows in their order in the file, or of all."""
        return StoredRecords(self, self.numbers if indices is None else self.numbers[indices])


class StoredRecords(Sequence[Record]):
    """Records that are read from their file when they are asked for, from its beginning on."""

    def __init__(self, places: StoredPlaces, numbers: "Column") -> None:
        self._places = places
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        """Return one record, or a list of them; the file is read up to the last of them."""
        if isinstance(index, slice):
            return list(StoredRecords(self._places, self._numbers[index]))
        return next(iter(StoredRecords(self._places, self._numbers[[index]])))

    def __iter__(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            DataError: the file was written since, or cannot be read any more.
        """
        source = self._places.source
        verify_unchanged(source, self._places.state)
        problems = Problems(source.name)
        rows = iterate_rows(source, problems)
        wanted = iter(self._numbers.tolist())
        number = next(wanted, None)
        for record in RecordReader(rows, source.name, self._places.settings, problems):
            if number is None:
                return
            if number_of(record.source) == number:
                yield record
                number = next(wanted, None)
