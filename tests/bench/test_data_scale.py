"""The benchmark of large files: what it generates and how it tells what it found."""

import json
import os
from pathlib import Path

from data_scale import (
    SIDES,
    build_tokenizer,
    page,
    run_datasets,
    run_lorafit,
    run_scan,
    store,
    table,
    write_copies,
    write_data,
)
from tiny import ROOT


def test_both_sides_make_the_same_tokens_of_the_generated_rows(tmp_path, monkeypatch):
    data = tmp_path / "rows.jsonl"
    count = write_data(data, 20_000)
    assert len(data.read_text().splitlines()) == count
    build_tokenizer(data, tmp_path / "tokenizer")
    from transformers import AutoTokenizer

    from lorafit.data import prepare, sources

    # `map` with processes leaves a copy in its place, which those who know the first one miss.
    monkeypatch.setattr(os, "environ", os.environ)
    monkeypatch.setattr(prepare, "MAX_WORKERS", 1)
    monkeypatch.setattr(sources, "STORED_FROM_BYTES", 0)
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(tmp_path / "lorafit"))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    ours = run_lorafit(data, tokenizer, tmp_path / "lorafit")
    theirs = run_datasets(data, tokenizer, tmp_path / "datasets")
    assert len(ours) == len(theirs) == count
    assert [row["input_ids"] for row in ours] == [row["input_ids"] for row in theirs]


def test_the_page_shows_the_stored_results_and_what_was_not_run():
    stored = Path(ROOT / "bench" / "results" / "data_scale.json")
    results = json.loads(stored.read_text())
    assert page(results) == stored.with_suffix(".md").read_text()
    both = next(run for run in results["runs"].values() if set(run["sides"]) == set(SIDES))
    del both["sides"]["datasets"]
    assert "not run |" in table(both)


def test_results_of_another_size_stay_and_those_of_the_same_size_are_replaced(tmp_path):
    stored = json.loads((ROOT / "bench" / "results" / "data_scale.json").read_text())
    run, scan = stored["runs"]["0.25"], stored["scan"]
    store(tmp_path, run=run)
    store(tmp_path, scan=scan)
    store(tmp_path, run={**run, "gigabytes": 0.5, "file_bytes": 5 * 10**8})
    store(tmp_path, run={**run, "date": "2030-01-01"})
    found = json.loads((tmp_path / "data_scale.json").read_text())
    assert set(found["runs"]) == {"0.25", "0.5"}
    assert found["runs"]["0.25"]["date"] == "2030-01-01"
    assert found["scan"] == scan
    headings = [
        line for line in (tmp_path / "data_scale.md").read_text().splitlines() if line[:2] == "##"
    ]
    sizes = [line.split()[1] for line in headings]
    assert sizes == ["0.25", "0.50", f"{scan['file_bytes'] / 1e9:.2f}"]


def test_a_scan_finds_every_copy_of_the_rows_and_none_repeated(tmp_path, capsys):
    rows = write_data(tmp_path / "rows.jsonl", 20_000)
    size = (tmp_path / "rows.jsonl").stat().st_size
    write_copies(tmp_path / "rows.jsonl", tmp_path / "scan.jsonl", 3 * size)
    assert (tmp_path / "scan.jsonl").stat().st_size >= 3 * size
    run_scan(tmp_path)
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["repeated"]) == (3 * rows, 0)


def test_the_guide_tells_the_stored_figures_of_every_size():
    results = json.loads((ROOT / "bench" / "results" / "data_scale.json").read_text())
    guide = " ".join((ROOT / "docs" / "DATA.md").read_text().split())
    found = [
        (run["file_bytes"], run["sides"]["lorafit"]["first"]) for run in results["runs"].values()
    ]
    for size, told in [*found, (results["scan"]["file_bytes"], results["scan"]["told"])]:
        start = guide.index(f"{size / 1e9:.2f} GB read and")
        told_there = guide[start:].split(";")[0]
        assert f"{told['cpu_seconds']:,.0f} seconds of processor time" in told_there
        assert f"{told['peak_bytes']['all_anonymous'] / 2**20:,.0f} MiB" in told_there
