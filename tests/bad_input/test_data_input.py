"""Training data that cannot be used: exit 3, file:line, why, and what to type next."""

import json
import os
import time
from pathlib import Path

import pytest

from lorafit.config.schema import Settings
from lorafit.data.records import RecordSet, read_records
from lorafit.data.sources import resolve_source
from lorafit.errors import DataError, ExitCode, UsageError


def read(path: Path | str, **settings) -> RecordSet:
    return read_records(resolve_source(str(path)), Settings(**settings))


def refused(path: Path | str, **settings) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, **settings)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    return caught.value


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# -- B15, B36, B49, B50: the file itself


@pytest.mark.row("B15")
def test_b15_refuses_a_pipe_without_opening_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    assert "not a regular file but a pipe" in str(refused(path))


@pytest.mark.row("B15")
def test_b15_refuses_devices_and_folders(tmp_path):
    assert "a character device" in str(refused("/dev/zero"))
    (tmp_path / "train.csv").write_text("text\na\n")
    error = refused(tmp_path)
    assert "a folder" in str(error)
    assert "train.csv" in error.hint


@pytest.mark.row("B36")
def test_b36_names_the_nearest_file_when_one_is_missing(write, tmp_path):
    write("", "training.jsonl")
    error = refused(tmp_path / "trainning.jsonl")
    assert str(error).endswith("trainning.jsonl: no such file")
    assert error.hint == f"did you mean {tmp_path / 'training.jsonl'}?"
    assert "does not exist" in str(refused(tmp_path / "nowhere" / "rows.jsonl"))


@pytest.mark.row("B36")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("content", ["", " \n\n \n"])
def test_b36_refuses_files_without_rows(write, name, content):
    assert name in str(refused(write(content, name)))


@pytest.mark.row("B36")
def test_b36_refuses_a_header_without_rows_and_an_empty_array(write):
    assert "holds no rows" in str(refused(write("prompt,completion\n", "rows.csv")))
    assert "holds no rows" in str(refused(write("[]", "rows.json")))


@pytest.mark.row("B36")
def test_b36_translates_the_systems_refusal(tmp_path):
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    assert "cannot be read" in str(refused(loop))
    assert "cannot be read" in str(refused("x" * 300 + ".jsonl"))
    assert "not a usable file name" in str(refused("a\0b.jsonl"))


@pytest.mark.row("B49")
@pytest.mark.parametrize(
    "url", ["https://user:secret@host/rows.jsonl", "s3://bucket/rows.jsonl", "file:///rows.jsonl"]
)
def test_b49_refuses_urls_and_does_not_repeat_them(url):
    with pytest.raises(UsageError, match="not from URLs") as caught:
        resolve_source(url)
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.row("B49")
def test_b49_refuses_patterns_and_empty_names():
    with pytest.raises(UsageError, match="is a pattern"):
        resolve_source("part-*.jsonl")
    with pytest.raises(UsageError, match="is empty"):
        resolve_source(" ")


@pytest.mark.row("B50")
@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"PK\x03\x04rest", "a zip archive"),
        (b"\x1f\x8brest", "a gzip file"),
        (b"PAR1rest", "a Parquet file"),
        (b"ARROW1rest", "an Arrow file"),
        (b"\x80\x04\x95rest", "a Python pickle"),
        (b"x" * 257 + b"ustar\x00", "a tar archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_b50_says_what_a_renamed_file_really_is(write, head, what, name):
    assert f"this is {what}" in str(refused(write(head, name)))


@pytest.mark.row("B50")
def test_b50_refuses_text_named_parquet_and_damaged_parquet(write):
    assert "does not begin with PAR1" in str(refused(write("text\n", "rows.parquet")))
    damaged = write(b"PAR1" + b"\x00" * 50 + b"PAR1", "rows.parquet")
    assert "not a readable Parquet file" in str(refused(damaged))


def test_refuses_an_unknown_suffix_and_lists_the_known(write):
    assert ".txt is not one of .jsonl" in str(refused(write("a", "rows.txt")))


# -- B37, B38, B42: JSON


@pytest.mark.row("B37")
@pytest.mark.parametrize(
    ("line", "column", "why"),
    [
        ('{"text": "a",}', 14, "a comma stands before the closing bracket"),
        ("{'text': 'a'}", 2, "double quotes, not single ones"),
        ('{"text": "a"} {"text": "b"}', 15, "more text follows"),
        ('{"text": "a"', 13, "ends inside a value"),
        ('{"text": "a', 10, "ends inside a value"),
        ('{"text": "a\x01"}', 12, "a control character inside a string"),
        ('{"text" "a"}', 9, "not JSON: expecting ':' delimiter"),
    ],
)
def test_b37_names_line_and_column_of_bad_json(write, line, column, why):
    path = write('{"text": "good"}\n' + line + "\n")
    error = refused(path)
    assert str(error).startswith(f"{path}:2:{column}: ")
    assert why in str(error)
    assert "\x01" not in str(error)


@pytest.mark.row("B37")
def test_b37_takes_a_last_line_without_a_line_end_and_windows_line_ends(write):
    assert len(read(write('{"text": "a"}\r\n{"text": "b"}')).records) == 2


@pytest.mark.row("B37")
def test_b37_shows_at_most_80_characters_around_the_fault(write):
    path = write('{"text": "' + "long " * 1000 + '",, "x": 1}\n')
    shown = str(refused(path)).rpartition(": ")[2]
    assert len(shown) <= 80


@pytest.mark.row("B37")
def test_b37_shows_five_problems_and_counts_all(write):
    message = str(refused(write('{"text": 1}\n' * 12)))
    assert message.count("'text' must be text, not a number") == 5
    assert "12 problems" in message


@pytest.mark.row("B37")
def test_b37_names_line_and_column_in_a_json_array(write):
    path = write('[\n{"text": "a"},\n{"text": "b"},\n]', "rows.json")
    assert f"{path}:4:1: a comma stands before the closing ]" in str(refused(path))
    path = write('[{"text": "a"}\n {"text": "b"}]', "rows.json")
    assert f"{path}:2:2: a comma or ] is missing" in str(refused(path))
    path = write('[{"text": "a"}] x', "rows.json")
    assert "more text follows the array" in str(refused(path))


@pytest.mark.row("B38")
@pytest.mark.parametrize(
    ("content", "guess"),
    [
        ('[{"text": "a"}]\n', "a JSON array: rename it to rows.json"),
        ('[\n{"text": "a"}\n]\n', "a JSON array: rename it to rows.json"),
        ('{\n"text": "a"\n}\n', "one JSON document over many lines: rename it to rows.json"),
        ("prompt,completion\na,b\n", "CSV: rename it to rows.csv"),
    ],
)
def test_b38_guesses_what_a_jsonl_file_really_is(write, content, guess):
    assert guess in refused(write(content)).hint


@pytest.mark.row("B38")
def test_b38_guesses_json_lines_named_json(write):
    path = write('{"text": "a"}\n{"text": "b"}\n', "rows.json")
    assert "rename it to rows.jsonl" in refused(path).hint


@pytest.mark.row("B38")
@pytest.mark.parametrize(
    ("line", "what"), [("3", "a number"), ('"x"', "a string"), ("[1]", "a list"), ("null", "null")]
)
def test_b38_refuses_rows_that_are_not_objects(write, line, what):
    assert f"this is {what}" in str(refused(write('{"text": "a"}\n' + line)))
    assert f"this is {what}" in str(refused(write(f'[{{"text": "a"}}, {line}]', "rows.json")))


@pytest.mark.row("B38")
def test_b38_refuses_json_that_holds_no_array(write):
    error = refused(write('{"rows": [{"text": "a"}]}', "rows.json"))
    assert "no array under `data` or `train`; its keys are rows" in str(error)


@pytest.mark.row("B42")
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": "a", "text": "b"}', "the key 'text' appears twice"),
        ('{"text": "a", "score": NaN}', "NaN is not JSON"),
        ('{"text": "a", "score": -Infinity}', "-Infinity is not JSON"),
        ('{"text": "a", "id": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"text": "a", "id": 1e999}', "1e999 is out of range"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text":' * 100_000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_b42_refuses_json_that_parsers_disagree_on(write, line, why, name):
    content = line + "\n" if name == "rows.jsonl" else f"[{line}]"
    error = refused(write(content, name))
    assert why in str(error)
    assert len(str(error)) < 400


@pytest.mark.row("B42")
def test_b42_refuses_a_line_beyond_16_mib_without_reading_it_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.truncate(1024**3)  # a sparse file: one line of 1 GiB of NUL bytes
    started = time.process_time()
    assert "longer than 16 MiB" in str(refused(path))
    assert time.process_time() - started < 5


# -- B39, B40, B44: rows


@pytest.mark.row("B39")
def test_b39_counts_kinds_and_names_the_first_that_differs(write):
    rows = [{"text": "a"}, {"text": "b"}, {"prompt": "a", "completion": "b"}]
    path = write("\n".join(map(json.dumps, rows)))
    error = refused(path)
    assert "2 text, 1 prompt-completion" in str(error)
    assert f"is {path}:3" in str(error)


@pytest.mark.row("B39")
def test_b39_names_the_fields_of_a_row_of_no_known_kind(write):
    error = refused(write('{"question": "a", "answer": "b"}'))
    assert "its fields: question, answer" in str(error)
    assert "--prompt-template" in error.hint


@pytest.mark.row("B40")
@pytest.mark.parametrize(
    ("value", "what"),
    [("null", "null"), ("3", "a number"), ("[]", "a list"), ("true", "true or false")],
)
def test_b40_refuses_text_that_is_not_text(write, value, what):
    path = write(f'{{"prompt": "a", "completion": {value}}}')
    assert f"{path}:1: 'completion' must be text, not {what}" in str(refused(path))


@pytest.mark.row("B40")
def test_b40_counts_blank_rows_and_refuses_when_all_are(write):
    found = read(write('{"text": "a"}\n{"text": ""}\n{"text": "  "}\n'))
    assert (len(found.records), found.num_empty) == (1, 2)
    assert "all 2 rows are blank" in str(refused(write('{"text": ""}\n{"text": " "}\n')))


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


@pytest.mark.row("B44")
@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([], "not an empty list"),
        ("hi", "not a string"),
        ([USER], "the last message is of the user: there is no answer to learn"),
        ([USER, USER, ANSWER], "message 2 is of the user, and one of the assistant is due"),
        ([ANSWER], "message 1 is of the assistant, and one of the user is due"),
        ([USER, {"role": "bot", "content": "x"}], "message 2 has the role 'bot'; roles are system"),
        ([USER, {"role": ["x"], "content": "x"}], "message 2 has the role"),
        ([USER, {"role": "assistant"}], "message 2 must be an object with role and content"),
        ([USER, {"role": "assistant", "content": None}], "content must be text, not null"),
        ([USER, ANSWER, {"role": "system", "content": "x"}], "message 3 is of the system"),
    ],
)
def test_b44_refuses_conversations_that_make_no_sense(write, messages, why):
    path = write(json.dumps({"messages": messages}))
    error = refused(path)
    assert str(error).startswith(f"{path}:1: ")
    assert why in str(error)


@pytest.mark.row("B44")
@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ("hi", "'conversations' must be a list of {from, value}, not a string"),
        ([{"from": "human", "value": "x"}, {"from": "tool", "value": "y"}], "has the role 'tool'"),
        ([{"from": "human", "value": 3}], "content must be text"),
        ([{"from": ["human"], "value": "x"}], "message 1 must be an object with role and content"),
    ],
)
def test_b44_refuses_sharegpts_turns_that_make_no_sense(write, turns, why):
    assert why in str(refused(write(json.dumps({"conversations": turns}))))


def test_refuses_a_row_without_its_label_when_the_field_is_named(write):
    path = write('{"text": "a", "gold": "x"}\n{"text": "b"}')
    assert f"{path}:2: the label field 'gold' is missing" in str(refused(path, label_field="gold"))


# -- B41: characters


@pytest.mark.row("B41")
def test_b41_takes_a_byte_order_mark_and_keeps_line_separators(write):
    found = read(write(b'\xef\xbb\xbf{"text": "a\xe2\x80\xa8b"}\n'))
    assert found.records[0].completion == "a\u2028b"


@pytest.mark.row("B41")
def test_b41_names_offset_and_line_of_a_byte_that_is_not_utf8(write):
    content = b'{"text": "a"}\n{"text": "caf\xe9"}\n'
    path = write(content)
    error = refused(path)
    assert f"{path}:2: not UTF-8: byte 0xe9 at offset {content.index(0xE9)}" in str(error)
    assert "iconv" in error.hint
    csv_path = write(b"text\ncaf\xe9\n", "rows.csv")
    assert f"{csv_path}:2: not UTF-8: byte 0xe9 at offset 8" in str(refused(csv_path))


@pytest.mark.row("B41")
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_b41_refuses_utf16(write, encoding):
    error = refused(write('{"text": "a"}\n'.encode(encoding)))
    assert "UTF-16" in str(error) or "not JSON" in str(error)


@pytest.mark.row("B41")
@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": "a\\ud800b"}', "half of a surrogate pair"),
        ('{"text": "a\\u0000b"}', "a NUL character"),
    ],
)
def test_b41_refuses_characters_that_tokenizers_cannot_read(write, line, why):
    path = write(line)
    assert f"{path}:1: 'text' holds {why}" in str(refused(path))


@pytest.mark.row("B41")
def test_b41_refuses_surrogates_and_nul_in_messages_and_labels(write):
    turns = [USER, {"role": "assistant", "content": "\ud800"}]
    assert "surrogate" in str(refused(write(json.dumps({"messages": turns}))))
    assert "NUL" in str(refused(write(json.dumps({"text": "a", "label": "\0"}))))


@pytest.mark.row("B51")
def test_b51_escapes_control_sequences_in_messages(write):
    error = refused(write('{"\x9b2Jx": 1, "\u202e": "\\u001b[2J"}\n'))
    assert not {"\x9b", "\x1b", "\u202e"} & set(f"{error}{error.hint}")
    assert "\\u202e" in str(error)


# -- CSV


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("text,label\na,b,c\n", ":2: 3 fields, the header has 2"),
        ("text,label\na\n", ":2: 1 fields, the header has 2"),
        ("text;label\na;b\n", ":1: the header is one field"),
        ("text,text\na,b\n", ":1: the header names 'text' twice"),
        ("text,\na,b\n", ":1: the header has a field without a name"),
        ('text\n"a\n', ":2: not CSV: unexpected end of data"),
        ('text\n"a"b\n', ":2: not CSV"),
        ("some words,that are data\na,b\n", "not a known kind of row; its fields: some words"),
    ],
)
def test_refuses_bad_csv_with_its_line(write, content, why):
    assert why in str(refused(write(content, "rows.csv")))


# -- hub


@pytest.mark.row("B58")
def test_b58_offline_hub_data_is_refused_at_once_with_the_next_command(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    error = refused("lorafit-tests/no-such-rows")
    assert "cannot be reached (HF_HUB_OFFLINE is set)" in str(error)
    assert "hf download --repo-type dataset lorafit-tests/no-such-rows" in error.hint
