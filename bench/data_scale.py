"""Prepare a large JSONL file for training: lorafit beside `datasets`, time, memory and disk.

    python bench/data_scale.py [--gigabytes 0.05] [--sides lorafit datasets]
        [--scan-gigabytes 10] [--work FOLDER] [--keep]

A file of prompts and completions is generated. Both sides read, tokenize and store it with as many
processes as there are processors: lorafit as `lorafit train` does, with its checks, and a script
of `datasets.load_dataset("json")` and `map`, as people write it. Each then starts a second time
on what it has stored, and reads random rows. Every start is a process of its own, whose memory,
with that of its children, is sampled from outside.

A scan reads a larger file, of numbered copies of those rows, as `lorafit data inspect` does where
there is no tokenizer: with all checks, counting characters.

Results of another size stay in the results; those of the same size are replaced.
"""

import argparse
import datetime
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
RESULTS = ROOT / "bench" / "results"
SIDES = ("lorafit", "datasets")
MAX_LENGTH = 1024
_VOCABULARY = 8192
_RANDOM_ROWS = 20_000
_SAMPLE_SECONDS = 0.25
_COPIED_AT_ONCE = 2**24


def write_data(path: Path, num_bytes: int) -> int:
    """Write rows until the file has `num_bytes`; return their number."""
    chance = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    known = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(20_000)]
    # Frequent and rare words, as in a language.
    words = chance.choices(known, [1 / rank for rank in range(1, len(known) + 1)], k=1_000_000)
    rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            start = chance.randrange(len(words) - 400)
            middle = start + chance.randint(5, 120)
            end = middle + chance.randint(1, 200)
            prompt, completion = " ".join(words[start:middle]), " ".join(words[middle:end])
            row = {"prompt": f"{rows} {prompt}:", "completion": completion}
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def write_copies(rows: Path, path: Path, num_bytes: int) -> None:
    """Write the rows of a file again and again, each time under another number."""
    start = b'{"prompt": "'
    written = copies = 0
    with path.open("wb") as file:
        while written < num_bytes:
            copies += 1
            with rows.open("rb") as source:
                while written < num_bytes and (lines := source.readlines(_COPIED_AT_ONCE)):
                    numbered = b"".join(lines).replace(start, start + b"%d-" % copies)
                    written += file.write(numbered)


def build_tokenizer(data: Path, folder: Path) -> None:
    """Train a byte-level BPE tokenizer on the first rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False
    )
    with data.open(encoding="utf-8") as file:
        texts = [json.loads(line)["completion"] for line, _ in zip(file, range(3000), strict=False)]
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(
        folder
    )


# -- The sides, each in a process of its own -----------------------------------------------------


def run_lorafit(data: Path, tokenizer: Any, cache: Path) -> Any:
    """Return the rows as `lorafit train` has them."""
    from lorafit.config.schema import Settings
    from lorafit.data import sources
    from lorafit.data.load import load_training_data

    os.environ["LORAFIT_CACHE_DIR"] = str(cache)
    sources.STORED_FROM_BYTES = 0
    settings = Settings(data=str(data), max_length=MAX_LENGTH, validation_split=0)
    return load_training_data(settings, tokenizer).train


def run_datasets(data: Path, tokenizer: Any, cache: Path) -> Any:
    """Return the rows as a script has them."""
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "json", data_files=str(data), split="train", cache_dir=str(cache)
    )

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = zip(batch["prompt"], batch["completion"], strict=True)
        prompts = tokenizer(batch["prompt"], return_attention_mask=False)["input_ids"]
        ids = tokenizer(
            [f"{prompt} {completion}{tokenizer.eos_token}" for prompt, completion in texts],
            return_attention_mask=False,
        )["input_ids"]
        labels = [
            [-100] * len(prompt) + row[len(prompt) :]
            for prompt, row in zip(prompts, ids, strict=True)
        ]
        return {
            "input_ids": [row[:MAX_LENGTH] for row in ids],
            "labels": [row[:MAX_LENGTH] for row in labels],
        }

    return loaded.map(
        tokenize, batched=True, num_proc=os.cpu_count(), remove_columns=loaded.column_names
    )


def run_side(side: str, work: Path) -> None:
    """Prepare the file and print what it took, as JSON."""
    from transformers import AutoTokenizer

    prepare: dict[str, Callable[[Path, Any, Path], Any]] = {
        "lorafit": run_lorafit,
        "datasets": run_datasets,
    }
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    started = time.perf_counter()
    rows = prepare[side](work / "rows.jsonl", tokenizer, work / side)
    told = {"rows": len(rows), **_spent_since(started)}
    chance = random.Random(1)
    chosen = [chance.randrange(len(rows)) for _ in range(min(_RANDOM_ROWS, len(rows)))]
    started = time.perf_counter()
    tokens = sum(len(rows[index]["input_ids"]) for index in chosen)
    read_seconds = time.perf_counter() - started
    told |= {"random_rows_per_second": len(chosen) / read_seconds, "random_tokens": tokens}
    sys.stdout.write(json.dumps(told) + "\n")


def run_scan(work: Path) -> None:
    """Look at the large file as `lorafit data inspect` does, and print what it took, as JSON."""
    from lorafit.config.schema import Settings
    from lorafit.data.inspection import inspect_data

    started = time.perf_counter()
    found = inspect_data(str(work / "scan.jsonl"), Settings(), None)
    told = {"rows": found.records.num_records, "repeated": found.num_duplicates}
    sys.stdout.write(json.dumps({**told, **_spent_since(started)}) + "\n")


def _spent_since(started: float) -> dict[str, float]:
    seconds = time.perf_counter() - started
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "seconds": seconds,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in usages),
    }


# -- Measuring ------------------------------------------------------------------------------------


def measure(side: str, work: Path) -> dict[str, Any]:
    """Run a side in a process of its own; return what it told, and the memory that it took."""
    command = [sys.executable, __file__, "--side", side, "--work", str(work)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        peaks = {"all_processes": 0, "main_process": 0, "main_anonymous": 0, "all_anonymous": 0}
        while process.poll() is None:
            for name, found in _memory_of(process.pid).items():
                peaks[name] = max(peaks[name], found)
            time.sleep(_SAMPLE_SECONDS)
        assert process.stdout is not None
        out = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{side} ended with {process.returncode}")
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return {**told, "peak_bytes": peaks, "stored_bytes": _bytes_under(work / side)}


def _memory_of(pid: int) -> dict[str, int]:
    """Return resident bytes of a process and its children; anonymous ones are no file's pages."""
    found = []
    try:
        main = psutil.Process(pid)
        for process in [main, *main.children(recursive=True)]:
            memory = process.memory_info()
            found.append((memory.rss, memory.rss - getattr(memory, "shared", 0)))
    except psutil.Error:
        pass
    if not found:
        return {}
    return {
        "main_process": found[0][0],
        "main_anonymous": found[0][1],
        "all_processes": sum(rss for rss, _ in found),
        "all_anonymous": sum(anonymous for _, anonymous in found),
    }


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1] for line in lines if line.startswith("model name")), "")
    return " ".join((name or platform.processor() or platform.machine()).split()[:2])


# -- Results --------------------------------------------------------------------------------------


def _mib(value: float) -> str:
    return f"{value / 2**20:,.0f}"


def page(results: dict[str, Any]) -> str:
    """Return the results as Markdown, the smallest file first."""
    runs = sorted(results["runs"].values(), key=lambda run: run["file_bytes"])
    parts = ["# Large JSONL files\n", *map(table, runs)]
    if "scan" in results:
        parts.append(scan_table(results["scan"]))
    return "\n".join(parts)


def scan_table(scan: dict[str, Any]) -> str:
    """Return what a scan took as Markdown."""
    told = scan["told"]
    figures = {
        "rows": f"{told['rows']:,}",
        "of these repeated": f"{told['repeated']:,}",
        "seconds": f"{told['seconds']:,.0f}",
        "CPU seconds": f"{told['cpu_seconds']:,.0f}",
        "peak MiB": _mib(told["peak_bytes"]["all_processes"]),
        "of these not pages of files": _mib(told["peak_bytes"]["all_anonymous"]),
    }
    lines = [
        f"## {scan['file_bytes'] / 1e9:.2f} GB read and checked, not tokenized",
        "",
        f"Written by `python bench/data_scale.py --scan-gigabytes {scan['gigabytes']:g}` on "
        f"{_machine(scan)}.",
        "As `lorafit data inspect` does without a tokenizer, in one process: strict JSON, kinds, "
        "encodings, lengths in characters, repeated rows, SHA-256 of the file.",
        "",
        "| | lorafit |",
        "| --- | --- |",
        *(f"| {title} | {figure} |" for title, figure in figures.items()),
    ]
    return "\n".join(lines) + "\n"


def _machine(document: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in document["versions"].items())
    return (
        f"{document['date']}: {document['device']}, {document['processors']} processors shared "
        f"with other work, {versions}"
    )


def table(document: dict[str, Any]) -> str:
    """Return what both sides took for a file as Markdown."""
    sides = document["sides"]
    chosen = "" if set(sides) == set(SIDES) else f" --sides {' '.join(sides)}"
    lines = [
        f"## {document['file_bytes'] / 1e9:.2f} GB, tokenized",
        "",
        f"Written by `python bench/data_scale.py --gigabytes {document['gigabytes']:g}{chosen}` "
        f"on {_machine(document)}.",
        f"{document['rows']:,} rows of prompt and completion; a BPE tokenizer of {_VOCABULARY} "
        "ids.",
        "`lorafit` reads with all its checks (strict JSON, kinds, encodings, duplicates, SHA-256 "
        'of file and rows); `datasets` is `load_dataset("json")` and `map(num_proc=processors)`, '
        "with Arrow's parser and no checks.",
        "The processors had other work, and not the same for both sides: CPU seconds compare, "
        "wall seconds hardly.",
        "",
        "| | lorafit | datasets |",
        "| --- | --- | --- |",
    ]
    figures: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
        ("rows per second", lambda s: f"{s['first']['rows'] / s['first']['seconds']:,.0f}"),
        ("seconds", lambda s: f"{s['first']['seconds']:,.0f}"),
        ("CPU seconds, all processes", lambda s: f"{s['first']['cpu_seconds']:,.0f}"),
        ("peak MiB, all processes", lambda s: _mib(s["first"]["peak_bytes"]["all_processes"])),
        (
            "of these not pages of files",
            lambda s: _mib(s["first"]["peak_bytes"]["all_anonymous"]),
        ),
        ("peak MiB of the main process, not of files",
         lambda s: _mib(s["first"]["peak_bytes"]["main_anonymous"])),
        ("MiB on the disk", lambda s: _mib(s["first"]["stored_bytes"])),
        ("second start: seconds", lambda s: f"{s['second']['seconds']:,.1f}"),
        (
            "second start: peak MiB, not of files",
            lambda s: _mib(s["second"]["peak_bytes"]["all_anonymous"]),
        ),
        (
            "random rows read per second",
            lambda s: f"{s['second']['random_rows_per_second']:,.0f}",
        ),
    )  # fmt: skip
    for title, cell in figures:
        cells = (cell(sides[side]) if side in sides else "not run" for side in SIDES)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def store(results: Path, **found: Any) -> None:
    """Put what was found beside what is stored, and write the page anew."""
    path = results / "data_scale.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    if "run" in found:
        stored["runs"][f"{found['run']['gigabytes']:g}"] = found["run"]
    if "scan" in found:
        stored["scan"] = found["scan"]
    path.write_text(json.dumps(stored, indent=2) + "\n")
    path.with_suffix(".md").write_text(page(stored))


def main() -> None:
    """Generate, measure, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=0.05)
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--scan-gigabytes", type=float, default=0.0)
    parser.add_argument("--work", type=Path, default=Path("outputs/data_scale"))
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="leave file and stored rows there")
    parser.add_argument("--side", choices=(*SIDES, "scan"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = options.work.absolute()
    if options.side == "scan":
        run_scan(work)
        return
    if options.side:
        run_side(options.side, work)
        return
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    measure_all(options, work)
    print((options.results / "data_scale.md").read_text())
    if not options.keep:
        shutil.rmtree(work)


def measure_all(options: argparse.Namespace, work: Path) -> None:
    """Measure what the options name, and store each result as soon as it is there."""
    data, scanned = work / "rows.jsonl", work / "scan.jsonl"
    rows = write_data(data, int(options.gigabytes * 1e9))
    about: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "device": _processor(),
        "processors": os.cpu_count(),
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name) for name in ("datasets", "pyarrow", "numpy", "tokenizers")},
        },
    }
    if options.scan_gigabytes:
        write_copies(data, scanned, int(options.scan_gigabytes * 1e9))
        size = {"gigabytes": options.scan_gigabytes, "file_bytes": scanned.stat().st_size}
        store(options.results, scan={**about, **size, "told": measure("scan", work)})
        scanned.unlink()
    if not options.sides:
        return
    build_tokenizer(data, work / "tokenizer")
    size = {"gigabytes": options.gigabytes, "file_bytes": data.stat().st_size, "rows": rows}
    document: dict[str, Any] = {**about, **size, "sides": {}}
    for side in options.sides:
        document["sides"][side] = {"first": measure(side, work), "second": measure(side, work)}
        store(options.results, run=document)


if __name__ == "__main__":
    main()
