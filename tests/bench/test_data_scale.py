"""The benchmark of large files: what it generates and how it tells what it found."""

import json
import os
from pathlib import Path

from data_scale import SIDES, build_tokenizer, run_datasets, run_lorafit, table, write_data
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


def test_the_table_shows_the_stored_results_and_what_was_not_run():
    stored = Path(ROOT / "bench" / "results" / "data_scale.json")
    document = json.loads(stored.read_text())
    assert set(document["sides"]) == set(SIDES)
    assert table(document) == stored.with_suffix(".md").read_text()
    document["sides"].pop("datasets")
    assert "not run |" in table(document)
