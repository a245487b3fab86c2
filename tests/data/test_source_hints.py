"""What a stranger's first names for data are answered with: a command that works as it stands."""

import bz2
import gzip
import json
import lzma
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lorafit.config.schema import Settings
from lorafit.data.records import read_records
from lorafit.data.sources import resolve_source
from lorafit.errors import LorafitError

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a person works in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path


def refused(data: str) -> LorafitError:
    with pytest.raises(LorafitError) as caught:
        read_records(resolve_source(data), Settings())
    assert caught.value.hint is not None
    return caught.value


def completions(data: str) -> list[str]:
    return [record.completion for record in read_records(resolve_source(data), Settings()).records]


def run_python(hint: str) -> None:
    """Run the `python -c` command at the end of a hint, in this process."""
    command = shlex.split(hint[hint.index("python -c") :])
    assert len(command) == 3
    exec(compile(command[2], "hint", "exec"), {})


@pytest.mark.parametrize(
    ("name", "pack", "unpacker"),
    [
        ("rows.jsonl.gz", gzip.compress, "gunzip"),
        ("rows.jsonl.bz2", bz2.compress, "bunzip2"),
        ("rows.jsonl.xz", lzma.compress, "unxz"),
        ("my rows.jsonl.gz", gzip.compress, "gunzip"),
        ("rows.jsonl", gzip.compress, "gunzip"),
    ],
)
def test_a_packed_file_is_answered_with_the_command_that_unpacks_it(here, name, pack, unpacker):
    (here / name).write_bytes(pack(LINES.encode()))
    command, _, then = refused(name).hint.partition(", then: --data ")
    assert command.startswith(f"{unpacker} < ")
    if shutil.which(unpacker) is None:
        pytest.skip(f"{unpacker} is not installed")
    subprocess.run(command, shell=True, check=True)
    assert completions(shlex.split(then)[0]) == [row["completion"] for row in ROWS]


def test_the_other_packed_files_are_answered_with_their_own_commands(here):
    (here / "rows.jsonl.zst").write_bytes(b"(\xb5/\xfd...")
    assert refused("rows.jsonl.zst").hint.startswith("unzstd < rows.jsonl.zst > rows.jsonl, then")
    (here / "table.xlsx").write_bytes(b"PK\x03\x04...")
    assert refused("table.xlsx").hint == "save the table as CSV in UTF-8"
    (here / "rows.zip").write_bytes(b"PK\x03\x04...")
    assert refused("rows.zip").hint.startswith("unzip rows.zip, then name a file of it")


def test_lines_of_text_are_answered_with_the_command_that_makes_rows_of_them(here):
    (here / "lines.txt").write_text('one "quoted"\n\ntwo\n')
    hint = refused("lines.txt").hint
    assert "rename the file" in hint
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    subprocess.run(hint[hint.index("jq ") :], shell=True, check=True)
    assert completions("lines.jsonl") == ['one "quoted"', "two"]


def test_a_folder_names_its_one_file_or_joins_several(here):
    folder = here / "my parts"
    folder.mkdir()
    (folder / "part-0.jsonl").write_text(LINES)
    assert refused("my parts").hint == "name one file, such as my parts/part-0.jsonl"
    (folder / "part-1.jsonl").write_text(LINES)
    one, _, joined = refused("my parts").hint.partition("; where all 2 belong together: ")
    assert one == "name one file, such as my parts/part-0.jsonl"
    subprocess.run(joined, shell=True, check=True)
    assert len(completions("all.jsonl")) == 6
    (folder / "notes.csv").write_text("prompt,completion\na,b\n")
    assert refused("my parts").hint == "name one file, such as my parts/notes.csv"


def test_parts_of_tables_are_joined_by_the_library_that_reads_them(here):
    import pyarrow
    import pyarrow.parquet

    folder = here / "set" / "data"
    folder.mkdir(parents=True)
    for part in range(2):
        table = pyarrow.Table.from_pylist(ROWS)
        pyarrow.parquet.write_table(table, folder / f"train-{part}.parquet")
    (here / "set" / "README.md").write_text("about it")
    hint = refused("set").hint
    assert hint.startswith("name one file, such as set/data/train-0.parquet; where all 2 belong")
    run_python(hint)
    assert len(completions("all.jsonl")) == 6


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_a_pattern_of_tables_is_joined_without_their_headers(here, suffix, mark):
    for part in range(2):
        (here / f"part-{part}{suffix}").write_text(f"prompt{mark}completion\na{mark}{part}\n")
    error = refused(f"part-*{suffix}")
    assert "is a pattern; one file is needed" in str(error)
    assert error.hint.startswith("2 files match it; join them first: python -c")
    (here / "all.jsonl").unlink(missing_ok=True)
    run_python(error.hint)
    rows = [json.loads(line) for line in (here / "all.jsonl").read_text().splitlines()]
    assert [str(row["completion"]) for row in rows] == ["0", "1"]


def test_a_pattern_says_what_it_stands_for(here):
    assert refused("part-*.jsonl").hint.startswith("no data file matches it; ")
    (here / "part-0.jsonl").write_text(LINES)
    assert refused("part-*.jsonl").hint == "one file matches it: --data part-0.jsonl"
    (here / "part-1.jsonl").write_text(LINES)
    hint = refused("part-*.jsonl").hint
    assert hint == "2 files match it; join them first: cat part-*.jsonl > all.jsonl"
    (here / "part-2.md").write_text("about them")
    assert refused("part-*").hint == "name one file, such as part-0.jsonl"
    (here / "part-2.md").unlink()
    (here / "part-2.csv").write_text("text\na\n")
    assert refused("part-*").hint == "name one file, such as part-0.jsonl"


def test_several_files_are_told_from_a_name_with_spaces(here):
    for name in ("a.jsonl", "b.jsonl", "a.jsonl b.jsonl"):
        (here / name).write_text(LINES)
    assert len(completions("a.jsonl b.jsonl")) == 3
    error = refused("a.jsonl,b.jsonl")
    assert "names 2 files; one is needed" in str(error)
    assert error.hint == "join them first: cat a.jsonl b.jsonl > all.jsonl"
    (here / "c.csv").write_text("text\na\n")
    assert refused("a.jsonl,c.csv").hint.startswith("bring all to one format")
    assert "no such file" in str(refused("a.jsonl,missing.jsonl"))


def test_what_datasets_saved_is_answered_with_the_command_that_exports_it(here):
    import datasets

    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk("saved")
    run_python(refused("saved").hint)
    assert len(completions("saved.jsonl")) == 3
    datasets.DatasetDict({"train": saved}).save_to_disk("both")
    run_python(refused("both").hint)
    assert len(completions("both.jsonl")) == 3
    [arrow] = Path("saved").glob("*.arrow")
    run_python(refused(str(arrow)).hint)
    assert len(completions(str(arrow.with_suffix(".jsonl")))) == 3


def test_a_model_is_not_taken_for_data(here):
    (here / "phi").mkdir()
    (here / "phi" / "config.json").write_text("{}")
    assert refused("phi").hint == "this looks like a model: --model phi"


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("hf://datasets/owner/name", "name the data set alone: --data owner/name"),
        (
            "https://huggingface.co/datasets/owner/name",
            "name the data set alone: --data owner/name",
        ),
        ("https://u:secret@huggingface.co/datasets/a/b", "download the file first"),
        ("file:///data/rows.jsonl", "name the file by its path alone"),
    ],
)
def test_a_url_is_answered_with_what_stands_for_it(url, hint):
    assert refused(url).hint.startswith(hint)


def test_standard_input_is_refused_because_rows_are_read_again(here):
    assert "rows are read more than once" in str(refused("-"))


def test_a_name_in_the_wrong_case_is_known(here):
    (here / "Rows.JSONL").write_text(LINES)
    if not (here / "rows.jsonl").exists():
        assert refused("rows.jsonl").hint == "did you mean Rows.JSONL?"
    assert len(completions("Rows.JSONL")) == 3


def test_a_bare_word_may_have_meant_the_hub(here):
    (here / "a.jsonl").write_text(LINES)
    expected = "data files in that folder: a.jsonl; a data set of the hub is named owner/name"
    assert refused("alpaca").hint == expected


def test_tables_with_tabs_are_read_and_the_wrong_mark_is_named(here):
    table = "prompt\tcompletion\nquestion\tan, answer\n"
    (here / "rows.tsv").write_text(table)
    assert completions("rows.tsv") == ["an, answer"]
    (here / "tabs.csv").write_text(table)
    assert refused("tabs.csv").hint == "rename it to tabs.tsv"
    (here / "commas.tsv").write_text("prompt,completion\na,b\n")
    assert refused("commas.tsv").hint == "rename it to commas.csv"
    (here / "semi.csv").write_text("prompt;completion\na;b\n")
    assert refused("semi.csv").hint == (
        "save the file with commas between fields, or with tabs as .tsv"
    )


def test_a_json_document_without_a_list_is_told_what_it_should_be(here):
    (here / "columns.json").write_text('{"prompt": ["a"], "completion": ["b"]}')
    assert "write the rows as one list" in refused("columns.json").hint
