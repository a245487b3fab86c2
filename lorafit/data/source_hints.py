"""What to type where the data that a person named is not one file that is read."""

import re
import shlex
from collections.abc import Sequence
from glob import iglob
from itertools import islice
from pathlib import Path

from lorafit.text import nearest

NEEDED = "a .jsonl, .json, .csv, .tsv or .parquet file"
_MANY = 1000
_SHOWN = 5
_UNPACKERS = {
    "a gzip file": "gunzip",
    "a bzip2 file": "bunzip2",
    "an xz file": "unxz",
    "a zstandard file": "unzstd",
}
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
# JSON files that stand beside data and hold no rows.
_NO_ROWS = frozenset({"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"})
_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".parquet": "parquet"}
_SUFFIXES = (".jsonl", ".ndjson", *_BUILDERS)


def unpack_hint(path: Path, found: str) -> str | None:
    """Return the command that unpacks a file that is `found` to be packed; None for others."""
    name = shlex.quote(str(path))
    if found in _UNPACKERS:
        is_named_so = path.suffix.lower() in _PACKED
        plain = path.with_suffix("") if is_named_so else path.with_name(f"plain-{path.name}")
        unpacked = shlex.quote(str(plain))
        return f"{_UNPACKERS[found]} < {name} > {unpacked}, then: --data {unpacked}"
    if path.suffix.lower() in _SPREADSHEETS:
        return "save the table as CSV in UTF-8"
    if "zip" in found:
        return f"unzip {name}, then name a file of it: {NEEDED}"
    if "tar" in found:
        return f"tar -xf {name}, then name a file of it: {NEEDED}"
    if "Arrow" in found:
        rows = str(path.with_suffix(".jsonl"))
        return _python(f"datasets.Dataset.from_file({str(path)!r}).to_json({rows!r})")
    return None


def suffix_hint(path: Path) -> str:
    """Return what to do with a file whose suffix says nothing that is known."""
    suffix = path.suffix.lower()
    rows = shlex.quote(path.with_suffix(".jsonl").name)
    if suffix in _SPREADSHEETS:
        return "save the table as CSV in UTF-8"
    if suffix in ("", ".txt", ".text", ".md"):
        lines = f"jq -cR 'select(. != \"\") | {{text: .}}' {shlex.quote(str(path))} > {rows}"
        return f"rename the file after what it holds; where each line is a row of text: {lines}"
    return f"rename the file after what it holds, such as {rows}"


def folder_hint(folder: Path) -> str:
    """Return which file of a folder to name, or what makes one of it."""
    if (folder / "config.json").exists():
        return f"this looks like a model: --model {shlex.quote(str(folder))}"
    saved = f"{folder.resolve().name}.jsonl"
    if (folder / "dataset_dict.json").exists():
        return _python(f"datasets.load_from_disk({str(folder)!r})['train'].to_json({saved!r})")
    if (folder / "state.json").exists() and (folder / "dataset_info.json").exists():
        return _python(f"datasets.load_from_disk({str(folder)!r}).to_json({saved!r})")
    files = data_files(folder) or [
        file for below in sorted(folder.iterdir()) if below.is_dir() for file in data_files(below)
    ]
    if not files:
        return f"name {NEEDED}"
    one = f"name one file, such as {files[0]}"
    alike = sorted(files[0].parent.glob(f"*{files[0].suffix}"))
    if len(files) == 1 or files != alike:
        return one
    pattern = str(files[0].parent / f"*{files[0].suffix}")
    joined = _joined([pattern], files[0].suffix.lower())
    return f"{one}; where all {len(files)} belong together: {joined}"


def pattern_hint(pattern: str) -> str:
    """Return what the pattern stands for: a file to name, or a command that joins several."""
    matches = [Path(name) for name in sorted(islice(iglob(pattern), _MANY))]
    files = list(filter(_is_data, matches))
    if not files:
        return "no data file matches it; join the files first: cat part-*.jsonl > all.jsonl"
    if len(files) == 1:
        return f"one file matches it: --data {shlex.quote(str(files[0]))}"
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1 or files != matches:
        return f"name one file, such as {files[0]}"
    return f"{len(files)} files match it; join them first: {_joined([pattern], suffixes.pop())}"


def several_files(data: str) -> list[str] | None:
    """Return the names in `data` where it is several of existing files, or None."""
    names = [name for name in re.split(r"[,;\s]+", data) if name]
    if len(names) < 2 or len(names) > _MANY or not all(Path(name).is_file() for name in names):
        return None
    return names


def several_hint(names: Sequence[str]) -> str:
    """Return the command that joins several files."""
    suffixes = {Path(name).suffix.lower() for name in names}
    if len(suffixes) > 1:
        return "bring all to one format and join them, or name one of them"
    return f"join them first: {_joined(names, suffixes.pop())}"


def url_hint(url: str) -> str:
    """Return what to type instead of a URL; of the URL itself only a hub's name is repeated."""
    hub = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", url, re.ASCII)
    if hub is None:
        page = r"https://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/?"
        hub = re.fullmatch(page, url, re.ASCII)
    if hub:
        return f"name the data set alone: --data {hub[1]}"
    if url.startswith("file:"):
        return "name the file by its path alone: --data my_rows.jsonl"
    return "download the file first, then: --data my_rows.jsonl"


def missing_hint(path: Path, names: Sequence[str]) -> str:
    """Return what may have been meant by a missing file, by the names in its folder."""
    by_case = next((name for name in names if name.lower() == path.name.lower()), None)
    similar = by_case or nearest(path.name, names)
    if similar:
        return f"did you mean {path.parent / similar}?"
    found = [file.name for file in data_files(path.parent)][:_SHOWN] if names else []
    if found:
        hub = "" if path.suffix else "; a data set of the hub is named owner/name"
        return f"data files in that folder: {', '.join(found)}{hub}"
    return f"give {NEEDED}, or a hub id such as owner/name"


def data_files(folder: Path) -> list[Path]:
    """Return the files of a folder whose suffix is that of a data file, sorted."""
    return sorted(filter(_is_data, folder.iterdir()))


def _is_data(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.name not in _NO_ROWS


def _joined(names: Sequence[str], suffix: str) -> str:
    """Return the command that makes one file of several; a name may be a pattern."""
    if suffix not in _BUILDERS:
        # Not quoted: a pattern has to reach the shell as one.
        shown = [re.sub(r"([^\w./*?\[\]-])", r"\\\1", name) for name in names]
        return f"cat {' '.join(shown)} > all.jsonl"
    files = repr(names[0] if len(names) == 1 else list(names))
    tabs = ", sep='\\t'" if suffix == ".tsv" else ""
    options = f"{_BUILDERS[suffix]!r}, data_files={files}, split='train'{tabs}"
    return _python(f"datasets.load_dataset({options}).to_json('all.jsonl')")


def _python(expression: str) -> str:
    code = f"import datasets; {expression}"
    # Names stand in single quotes there, which are easier to read in double ones.
    is_plain = not set(code) & set('"$`!')
    quoted = f'"{code}"' if is_plain else shlex.quote(code)
    return f"python -c {quoted}"
