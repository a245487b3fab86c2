import csv
import json

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lorafit.config.schema import Settings
from lorafit.data.records import read_records
from lorafit.data.sources import HubSource, resolve_source
from lorafit.errors import DataError

ROWS = [
    {"prompt": 'a\u2028b, "c"', "completion": "first\nsecond line"},
    {"prompt": "é", "completion": "🙂"},
]


def read(path) -> list[tuple[str | None, str]]:
    found = read_records(resolve_source(str(path)), Settings())
    return [(record.prompt, record.completion) for record in found.records]


def expected() -> list[tuple[str, str]]:
    return [(row["prompt"], row["completion"]) for row in ROWS]


def test_reads_jsonl_and_keeps_unicode_line_separators(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_bytes("\n".join(lines).encode())
    assert read(path) == expected()


@pytest.mark.parametrize("wrap", [None, "data", "train"])
def test_reads_a_json_array_alone_or_in_an_object(tmp_path, wrap):
    path = tmp_path / "rows.json"
    document = {"version": {"a": [1]}, wrap: ROWS, "more": 1} if wrap else ROWS
    path.write_text(json.dumps(document, indent=2))
    assert read(path) == expected()


def test_names_the_line_of_each_json_element(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"text": "a"},\n\n  {"text":\n "b"}\n]\n')
    sources = [r.source for r in read_records(resolve_source(str(path)), Settings()).records]
    assert sources == [f"{path}:2", f"{path}:4"]


def test_reads_csv_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert read(path) == expected()
    records = read_records(resolve_source(str(path)), Settings()).records
    assert [record.source for record in records] == [f"{path}:2", f"{path}:4"]


def test_reads_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read(path) == expected()


def test_reads_conversations_from_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": turns}]), path)
    record = read_records(resolve_source(str(path)), Settings()).records[0]
    assert [tuple(message) for message in record.messages] == [("user", "hi"), ("assistant", "ho")]
    assert record.source == f"{path}:row 1"


def test_tells_hub_ids_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_source("owner/name", "test") == HubSource("owner/name", None, "test")
    assert resolve_source("owner/name:main").configuration == "main"
    for path in ("./owner/name", "owner/name.jsonl", "/owner/name"):
        with pytest.raises(DataError, match="no such file"):
            resolve_source(path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    with pytest.raises(DataError, match="a folder"):
        resolve_source("owner/name")


def test_reports_fields_that_are_not_used(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "id": 1, "label": "x"}\n{"text": "b", "url": ""}\n')
    assert read_records(resolve_source(str(path)), Settings()).ignored_fields == ("id", "url")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "messages", "role", "content"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
CONTENTS = (
    st.binary(max_size=200)
    | st.text(st.sampled_from('{}[]",:\n\\"u0dtext123 \x00\ufeff'), max_size=60).map(str.encode)
    | st.lists(JSON_VALUES, max_size=3).map(lambda v: json.dumps(v).encode())
    | st.lists(JSON_VALUES, max_size=3).map(lambda v: "\n".join(map(json.dumps, v)).encode())
    | st.binary(max_size=60).map(lambda b: b"PAR1" + b + b"PAR1")
)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@hypothesis_settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=CONTENTS)
@example(content=b"")
@example(content=b'"\r"')
@example(content=b"[" * 100_000)
@example(content=b'{"text":' * 100_000)
@example(content=b'{"text": "a", "text": "b"}')
def test_readers_raise_nothing_but_data_errors(tmp_path, suffix, content):
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    try:
        found = read_records(resolve_source(str(path)), Settings())
    except DataError:
        return
    assert found.records
