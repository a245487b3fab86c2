import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.config.document import Document
from lorafit.config.loading import load_document, parse_document
from lorafit.errors import ConfigError


def yaml_value(text: str) -> object:
    return parse_document(f"key: {text}\n".encode(), "t.yaml", "yaml").entries["key"].plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1e5", 1e5),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("16.0", 16.0),
        # YAML 1.1 would make numbers, booleans and dates of these.
        ("010", "010"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("2024-01-31", "2024-01-31"),
        (".nan", ".nan"),
        (".inf", ".inf"),
        ("1e-400", "1e-400"),
        ("1e400", "1e400"),
        ("'16'", "16"),
        ('"true"', "true"),
        ("9" * 5000, "9" * 5000),
        ("[a, 1, 2e-4]", ["a", 1, 2e-4]),
        ("'&not an anchor'", "&not an anchor"),
    ],
)
def test_yaml_scalars_follow_the_core_schema_without_its_surprises(text, value):
    read = yaml_value(text)
    assert read == value
    assert type(read) is type(value)


def test_every_yaml_value_knows_its_line():
    text = b"# comment\na: 1\n\nlora:\n  r: 8\n  target_modules:\n    - x\n    - y\nz: |\n  t\n"
    document = parse_document(text, "t.yaml", "yaml")
    lines = {key: node.line for key, node in document.flat()}
    assert lines == {"a": 2, "lora.r": 5, "lora.target_modules": 6, "z": 9}
    assert document.where(document.entries["z"]) == "t.yaml:9"


def test_every_json_value_knows_its_line():
    text = b'{\n  "a": 1,\n  "lora":\n    {"r":\n 8},\n  "b": ["x",\n "y"]\n}\n'
    document = parse_document(text, "t.json", "json")
    assert {key: node.line for key, node in document.flat()} == {"a": 2, "lora.r": 4, "b": 6}


def test_toml_values_find_their_line():
    text = b'a = 1\n# r = 3\n[lora]\nr = 8\ntarget_modules = ["x",\n "y"]\n[training]\nr = 9\n'
    document = parse_document(text, "t.toml", "toml")
    lines = {key: node.line for key, node in document.flat()}
    assert lines == {"a": 1, "lora.r": 4, "lora.target_modules": 5, "training.r": 8}


def test_a_windows_file_reads_like_any_other(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - x\r\n")
    document = load_document(path)
    assert {key: node.plain() for key, node in document.flat()} == {"a": 1, "b": ["x"]}
    assert document.entries["b"].line == 2


def test_the_suffix_decides_the_format(tmp_path):
    for name, text in (("a.yml", "k: 1"), ("a.json", '{"k": 1}'), ("a.TOML", "k = 1")):
        path = tmp_path / name
        path.write_text(text)
        assert load_document(path).entries["k"].plain() == 1
    (tmp_path / "a.ini").write_text("k=1")
    with pytest.raises(ConfigError, match=r"the suffix '\.ini' says no format"):
        load_document(tmp_path / "a.ini")


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ('{"a": 1,}', "1:9", "a comma before '}'"),
        ('{"a": 1\n "b": 2}', "2:2", "',' or '}' is due here"),
        ("{'a': 1}", "1:2", "a key in double quotes is due here"),
        ('{"a": NaN}', "1:7", "NaN is not a number that a setting can have"),
        ('{"a": -Infinity}', "1:7", "-Infinity is not a number"),
        ('{"a": 1e999}', "1:7", "too long, too large or too small"),
        ('{"a": ' + "1" * 5000 + "}", "1:7", "too long, too large or too small"),
        ('{"a": "\\ud800"}', "1:15", "half of a surrogate pair"),
        ('{"a": 1} {}', "1:10", "more text after the end"),
        ('{"a": "x', "1:7", "Unterminated string"),
        ('{"a": 1, "b": 2,\n "a": 3}', "2", "a is given twice, on line 1 and on line 2"),
        ('{"a": ' + "[" * 20_000, "1", "more than 20 levels of nesting"),
    ],
)
def test_json_is_stricter_than_the_standard_library(text, where, message):
    with pytest.raises(ConfigError) as caught:
        parse_document(text.encode(), "t.json", "json")
    problem = caught.value.problems[0]
    assert problem.where == f"t.json:{where}"
    assert message in problem.message


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a = 1\na = 2\nb = 1", "2:6", "Cannot overwrite a value"),
        ("a = ", "1:5", "Invalid value"),
        ("a = " + "[" * 20_000, "1", "more than 20 levels of nesting"),
        ("a." * 30 + "b = 1", "1", "more than 20 levels of nesting"),
        ("", "1", "the file holds no settings"),
    ],
)
def test_toml_errors_name_the_place(text, where, message):
    with pytest.raises(ConfigError) as caught:
        parse_document(text.encode(), "t.toml", "toml")
    problem = caught.value.problems[0]
    assert problem.where == f"t.toml:{where}"
    assert message in problem.message


def test_control_characters_of_a_file_never_reach_the_terminal():
    with pytest.raises(ConfigError) as caught:
        parse_document(b'{"\x1b]0;x\x07": }', "evil\x1b[2J.json", "json")
    assert "\x1b" not in str(caught.value)
    assert "evil\\x1b[2J.json" in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(max_size=5), json_values, min_size=1, max_size=4), st.booleans())
def test_json_reads_what_the_standard_library_writes(value, ascii_only):
    text = json.dumps(value, indent=1, ensure_ascii=ascii_only).encode("utf-8", "strict")
    document = parse_document(text, "t.json", "json")
    assert {key: node.plain() for key, node in document.entries.items()} == value


PIECES = "a|b: |\n|  |- |[|]|{|}|&x |*x|!t |<<: |---\n|'|\"|\t|#|1e9|>\n|? |,|=|[[a]]|%|\\U|F"
snippets = st.lists(st.sampled_from((*PIECES.split("|"), "\u2028", "\x85", "\0")), max_size=25).map(
    lambda pieces: "".join(pieces).encode()
)


@pytest.mark.parametrize("kind", ["yaml", "json", "toml"])
@settings(max_examples=120, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | snippets)
def test_any_bytes_are_read_or_refused_with_a_config_error(kind, data):
    outcome: Document | ConfigError
    try:
        outcome = parse_document(data, "t", kind)
    except ConfigError as error:
        outcome = error
    if isinstance(outcome, ConfigError):
        (problem,) = outcome.problems
        assert problem.where.startswith("t")
        assert problem.message
    else:
        assert outcome.entries


def test_a_missing_file_says_so(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load_document(tmp_path / "none.yaml")
