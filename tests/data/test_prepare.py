"""Large files: stored and mapped rows are those of a small file, and no kill leaves half of them.

Tokenizing starts processes, which takes seconds: what needs it shares one store.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import END, child_environment

from lorafit.config.schema import Settings
from lorafit.data import prepare, sources, store
from lorafit.data.columns import Block
from lorafit.data.load import TrainingData, load_source, load_training_data
from lorafit.data.packing import pack_rows
from lorafit.data.prepare import Work, prepare_rows, tokenize_in_parallel
from lorafit.data.records import read_records
from lorafit.data.sources import resolve_source
from lorafit.data.store import RowStore
from lorafit.errors import DataError, MemoryFitError, StorageError


def mixed_rows() -> Iterator[dict[str, Any]]:
    """Yield more rows than a batch holds: long, dropped, repeated, blank, with special text."""
    for index in range(700):
        yield {"prompt": f"Question {index}:", "completion": f"answer {index % 40}", "label": "a"}
    yield {"prompt": "Question 1:", "completion": "answer 1", "label": "b"}
    yield {"prompt": "long", "completion": "yes " * 100, "label": "b"}
    yield {"prompt": "no room " * 80, "completion": f"yes {END}", "label": "c"}
    yield {"prompt": "special", "completion": f"text {END} in it", "label": "a", "extra": 1}
    yield {"prompt": "blank", "completion": "  ", "label": "a"}


@pytest.fixture(autouse=True)
def _one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "MAX_WORKERS", 1)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "STORED_FROM_BYTES", 0)


@pytest.fixture(scope="module")
def both(tokenizer, tmp_path_factory) -> SimpleNamespace:
    """The same file as rows in memory and as stored rows, with the progress that was told."""
    path = tmp_path_factory.mktemp("large") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mixed_rows()), encoding="utf-8")
    settings = Settings(data=str(path), max_length=64)
    told: list[tuple[str, float, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAFIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(prepare, "MAX_WORKERS", 1)
        small = load_training_data(settings, tokenizer)
        patch.setattr(sources, "STORED_FROM_BYTES", 0)
        large = load_training_data(settings, tokenizer, lambda *heard: told.append(heard))
        again: list[Any] = []
        load_training_data(settings, tokenizer, lambda *heard: again.append(heard))
        cache = Path(os.environ["LORAFIT_CACHE_DIR"])
    return SimpleNamespace(
        path=path, settings=settings, small=small, large=large, told=told, again=again, cache=cache
    )


def rows_of(data: TrainingData) -> list[dict[str, list[int]]]:
    assert data.validation is not None
    return [*data.train, *data.validation]


@pytest.mark.row("B48")
def test_b48_stored_rows_are_those_that_memory_would_hold(both):
    assert rows_of(both.large) == rows_of(both.small)
    assert both.large.train.lengths == both.small.train.lengths
    assert list(both.large.train.keys) == list(both.small.train.keys)


def test_the_report_of_stored_rows_is_the_same_in_every_count(both):
    assert both.large.report == both.small.report
    counts = both.large.report.training.counts
    assert (counts.truncated, counts.dropped, counts.special_text_rows) == (2, 1, 2)
    assert counts.duplicates == 1
    assert both.large.report.training.ignored_fields == ("extra",)
    assert both.large.labels_present


def test_a_seed_packs_and_shuffles_stored_rows_in_the_same_way(both):
    from torch import Generator
    from torch.utils.data import RandomSampler

    packings = [pack_rows(data.train.lengths, 64, 7) for data in (both.small, both.large)]
    assert packings[0] == packings[1]
    orders = [
        list(RandomSampler(data.train, generator=Generator().manual_seed(3)))
        for data in (both.small, both.large)
    ]
    assert orders[0] == orders[1]


def test_records_of_stored_rows_are_read_from_the_file_again(both):
    small, large = both.small.validation, both.large.validation
    assert list(large.records) == list(small.records)
    assert large.records[:2] == small.records[:2]
    assert large.records[1] == small.records[1]
    assert large.source_of(1) == small.source_of(1) == small.records[1].source


def test_progress_is_told_once_and_a_second_start_finds_the_rows(both):
    stages = [stage for stage, _, _ in both.told]
    assert list(dict.fromkeys(stages)) == ["reading the data", "tokenizing the data"]
    assert both.told[-1] == ("tokenizing the data", 1.0, 703)
    assert {stage for stage, _, _ in both.again} == {"reading the data"}


def test_a_file_by_another_name_shares_the_rows_and_keeps_its_own_name(
    both, tokenizer, tmp_path, monkeypatch, everything_is_large
):
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(both.cache))
    other = tmp_path / "other.jsonl"
    other.write_bytes(both.path.read_bytes())
    stages = set()
    loaded = load_source(str(other), both.settings, tokenizer, lambda stage, *_: stages.add(stage))
    assert stages == {"reading the data"}
    assert loaded.dataset.source_of(0) == f"{other}:1"
    assert loaded.report.counts.first_dropped == f"{other}:703"


def test_records_of_a_file_that_was_written_since_are_refused(
    both, tokenizer, tmp_path, monkeypatch, everything_is_large
):
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(both.cache))
    other = tmp_path / "other.jsonl"
    other.write_bytes(both.path.read_bytes())
    loaded = load_source(str(other), both.settings, tokenizer)
    other.write_text("{}")
    with pytest.raises(DataError, match="changed"):
        list(loaded.dataset.records)


def test_rows_that_lost_bytes_are_not_used(both, tmp_path):
    copy = RowStore(tmp_path / "rows")
    (entry,) = [path for path in (both.cache / "rows").iterdir() if path.is_dir()]
    shutil.copytree(entry, copy.folder / entry.name)
    assert copy.is_ready(entry.name)
    os.truncate(copy.folder / entry.name / "tokens", 40)
    assert not copy.is_ready(entry.name)
    assert not (copy.folder / entry.name).exists()


@pytest.mark.parametrize(
    ("setting", "value"), [("max_length", 65), ("train_on_prompt", True), ("label_field", "label")]
)
def test_other_settings_or_contents_or_template_are_other_rows(both, tokenizer, setting, value):
    source = resolve_source(str(both.path))
    changed = both.settings.model_copy(update={setting: value})
    keys = {
        store.entry_key(source, "a" * 64, tokenizer, both.settings, None),
        store.entry_key(source, "b" * 64, tokenizer, both.settings, None),
        store.entry_key(source, "a" * 64, tokenizer, changed, None),
        store.entry_key(source, "a" * 64, tokenizer, both.settings, "{{ messages }}"),
    }
    assert len(keys) == 4


def test_settings_that_do_not_touch_rows_share_them(both, tokenizer):
    source = resolve_source(str(both.path))
    changed = both.settings.model_copy(update={"learning_rate": 0.5, "seed": 1})
    keys = {
        store.entry_key(source, "a" * 64, tokenizer, settings, None)
        for settings in (both.settings, changed)
    }
    assert len(keys) == 1


# -- What is wrong with a file


@pytest.mark.row("B48")
@pytest.mark.parametrize("place", [1, 650])
def test_b48_what_is_wrong_with_rows_is_told_as_for_a_small_file(
    tokenizer, write_rows, settings, monkeypatch, tmp_path, place
):
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(tmp_path / "cache"))
    rows: list[Any] = [{"prompt": f"{index}", "completion": "b"} for index in range(700)]
    rows[place : place + 3] = [{"prompt": 1, "completion": "b"}, 7, {"x": "y"}]
    path = write_rows(rows)
    messages = []
    for read in (
        lambda: read_records(resolve_source(str(path)), settings),
        lambda: prepare_rows(resolve_source(str(path)), settings, tokenizer),
    ):
        with pytest.raises(DataError) as caught:
            read()
        messages.append((str(caught.value), caught.value.hint))
    assert messages[0] == messages[1]
    assert f"rows.jsonl:{place + 1}: 'prompt' must be text, not a number" in messages[0][0]
    assert not _entries(tmp_path / "cache")


def test_a_conversation_that_cannot_be_written_is_named(
    tokenizer, write_rows, monkeypatch, tmp_path
):
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(tmp_path / "cache"))
    template = tmp_path / "picky.jinja"
    template.write_text(
        "{% for message in messages %}{% if message['content'] == 'bad' %}"
        "{{ raise_exception('not this one') }}{% endif %}{{ message['content'] }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    bad = [{"role": "user", "content": "bad"}, {"role": "assistant", "content": "ho"}]
    path = write_rows([{"messages": turns}, {"messages": bad}])
    settings = Settings(max_length=64, chat_template=str(template))
    with pytest.raises(DataError, match=r"rows.jsonl:2: .*not this one"):
        prepare_rows(resolve_source(str(path)), settings, tokenizer)
    assert not _entries(tmp_path / "cache")


def test_rows_for_which_the_disk_has_no_room_are_refused_with_both_numbers(
    tokenizer, write_rows, pairs, settings, monkeypatch, tmp_path
):
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(prepare, "free_bytes", lambda folder: 2048)
    path = write_rows(pairs * 100)
    with pytest.raises(
        StorageError, match=r"need about .* KiB on the disk, and .* KiB are free"
    ) as e:
        prepare_rows(resolve_source(str(path)), settings, tokenizer)
    assert e.value.exit_code == 7
    assert "LORAFIT_CACHE_DIR=FOLDER" in (e.value.hint or "")
    assert not _entries(tmp_path / "cache")


def test_a_cache_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="tokenized rows cannot be kept"):
        RowStore(tmp_path / "file" / "rows")


# -- Processes


class _Quick:
    """Tokenizes nothing: what counts is where and when it is asked to."""

    def block(self, records: Any) -> Block:
        return Block(kept=array("i", [os.getpid()]))


class _EndsItsProcess:
    def block(self, records: Any) -> Block:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


SOUND: Any = SimpleNamespace(is_sound=True)


def test_other_processes_tokenize_and_few_batches_are_under_way_at_a_time():
    drawn: list[int] = []

    def work() -> Iterator[Work]:
        for number in range(40):
            drawn.append(number)
            yield Work([], number / 40)

    quick: Any = _Quick()
    for done, (piece, block) in enumerate(tokenize_in_parallel(work(), quick, SOUND)):
        assert piece.done == done / 40
        assert block.kept[0] != os.getpid()
        assert len(drawn) - done <= 4
    assert len(drawn) == 40


def test_a_tokenizing_process_that_the_system_ends_is_told():
    ends: Any = _EndsItsProcess()
    with pytest.raises(MemoryFitError, match="ended a process that tokenizes"):
        list(tokenize_in_parallel([Work([], 0.0)], ends, SOUND))


_HOLDER = """
import sys
from pathlib import Path
from lorafit.data import store
with store.RowStore(Path(sys.argv[1])).being_written("ab" * 32, lambda: None) as folder:
    print("held", flush=True)
    sys.stdin.readline()
    for name in store._TYPES:
        (folder / name).write_bytes(b"")
    facts = store.SourceFacts("f", "text", 0, 0, (), store.Counter())
    store.write_index(folder, facts, store.Tally())
"""


@contextlib.contextmanager
def holder_of(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Context with another process that is writing the entry abab… of a store."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_process_writes_and_the_others_wait_and_find_it(tmp_path):
    rows = RowStore(tmp_path)
    waited = []
    with holder_of(tmp_path) as other:

        def wait() -> None:
            waited.append(True)
            if len(waited) == 1:
                assert other.stdin is not None
                other.stdin.write("go on\n")
                other.stdin.flush()

        with rows.being_written("ab" * 32, wait) as folder:
            assert folder is None
    assert waited
    assert rows.is_ready("ab" * 32)


def test_other_processes_of_a_run_leave_the_writing_to_the_first_one(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_HEAD_START_SECONDS", 3600.0)
    there = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "host", "MASTER_PORT": 1}
    for name, value in there.items():
        monkeypatch.setenv(name, str(value))
    rows = RowStore(tmp_path)
    waited = []

    def wait() -> None:
        waited.append(True)
        if len(waited) == 1:  # nobody has the lock, and it is not taken
            with holder_of(tmp_path) as first:
                first.communicate("go on\n")

    with rows.being_written("ab" * 32, wait) as folder:
        assert folder is None
    assert waited


def test_a_kill_leaves_nothing_that_looks_whole_and_the_next_writer_removes_it(tmp_path):
    rows = RowStore(tmp_path)
    with holder_of(tmp_path) as other:
        assert (tmp_path / f".staging-{'ab' * 32}").is_dir()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert not rows.is_ready("ab" * 32)
    with rows.being_written("cd" * 32, lambda: None) as folder:
        assert list(tmp_path.glob(".staging-*")) == [folder]


def test_a_folder_that_another_process_writes_is_left_alone(tmp_path):
    with (
        holder_of(tmp_path),
        RowStore(tmp_path).being_written("cd" * 32, lambda: None),
    ):
        assert (tmp_path / f".staging-{'ab' * 32}").is_dir()


def test_processes_that_tokenize_end_with_the_one_that_reads(tmp_path):
    import psutil

    script = """
import time
from types import SimpleNamespace
from lorafit.data.columns import Block
from lorafit.data.prepare import Work, tokenize_in_parallel

class Quick:
    def block(self, records):
        return Block()

def work():
    yield Work([], 0.0)
    print("working", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(tokenize_in_parallel(work(), Quick(), SimpleNamespace(is_sound=True)))
"""
    path = tmp_path / "reads.py"
    path.write_text(script)
    process = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "working\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
    finally:
        process.kill()
        process.communicate()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert not alive


# -- Runs


@pytest.mark.slow
def test_a_run_on_stored_rows_takes_the_same_steps_and_resumes_within_an_epoch(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    def losses(folder: Path) -> list[float]:
        lines = (folder / "events.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    small, large = tmp_path / "small", tmp_path / "large"
    assert run_lorafit(*train_arguments(small)).code == 0
    monkeypatch.setattr(sources, "STORED_FROM_BYTES", 0)
    outcome = run_lorafit(*train_arguments(large))
    assert outcome.code == 0
    assert "tokenizing the data: 100%" in outcome.err or "tokenizing the data: 0%" in outcome.err
    assert losses(large) == losses(small)
    records = [json.loads((folder / "run.json").read_text()) for folder in (small, large)]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    # Back to step 2, in the middle of the first epoch.
    for path in large.glob("checkpoint-*"):
        if path.name != "checkpoint-2":
            shutil.rmtree(path)
    (large / "run.json").write_text(json.dumps({**records[1], "status": "interrupted"}))
    assert run_lorafit(*train_arguments(large)).code == 0
    assert losses(large) == losses(small)


def _entries(cache: Path) -> list[Path]:
    return [path for path in cache.glob("rows/*") if path.is_dir()]
