"""Rows B5 to B7, B9, B16, B18 to B22, B24 to B29, B31, B32 and B34: settings that are wrong."""

import contextlib
import json
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.config.aliases import ALIASES, SECTIONS
from lorafit.config.batch import resolve_batch
from lorafit.config.resolve import Resolved, resolve_run
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, ExitCode, LorafitError
from lorafit.hardware.info import DeviceInfo

CPU = DeviceInfo("cpu", "a CPU", "cpu", 8 * 1024**3, None, "for a test")


def run(tmp_path, data: str | bytes | None = None, suffix: str = "yaml", **given) -> Resolved:
    path = None
    if data is not None:
        path = tmp_path / f"mine.{suffix}"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    base = {"preset": None, "overrides": (), "flags": {}, "environ": {}, "device": CPU}
    return resolve_run(**{**base, "config_file": path, **given})


def refusal(tmp_path, data: str | bytes | None = None, suffix: str = "yaml", **given):
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, data, suffix, **given)
    text = str(caught.value).replace(str(tmp_path) + "/", "")
    return caught.value, text


@pytest.mark.row("B5")
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e-400", "10", "1e400", "x"])
def test_b5_learning_rate_must_be_finite_and_in_range(tmp_path, value):
    error, text = refusal(tmp_path, flags={"learning_rate": value})
    assert error.exit_code == ExitCode.USAGE
    assert text.startswith(f"flag --learning-rate: {value} ")
    assert "a number above 0 to 1" in text


@pytest.mark.row("B6")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_steps", "0", "0 is not allowed; it must be a whole number from 1 to 1000000000"),
        ("max_steps", "-5", "-5 is not allowed"),
        ("max_steps", "1" + "0" * 20, "100000000000000000000 is not allowed"),
        ("lora_r", "0", "0 is not allowed; it must be a whole number from 1 to 256"),
        ("lora_r", "8.0", "8.0 is not a whole number from 1 to 256"),
        ("lora_r", "1_000", "1_000 is not a whole number"),
        ("lora_r", "257", "257 is not allowed"),
        ("lora_r", "010", "010 is not a whole number"),
        ("lora_r", "٣", "٣ is not a whole number"),
        ("seed", "1" * 5000, "is not a whole number"),
    ],
)
def test_b6_integers_are_never_coerced(tmp_path, name, value, message):
    error, text = refusal(tmp_path, flags={name: value})
    assert error.exit_code == ExitCode.USAGE
    assert message in text


@pytest.mark.row("B7")
def test_b7_an_indivisible_batch_names_the_two_nearest(tmp_path):
    resolved = run(
        tmp_path, flags={"per_device_train_batch_size": "3", "effective_batch_size": "8"}
    )
    with pytest.raises(ConfigError) as caught:
        resolve_batch(resolved, num_devices=1)
    assert caught.value.exit_code == ExitCode.USAGE
    assert "8 is not a multiple of 3" in str(caught.value)
    assert caught.value.hint == "the nearest values that work: effective_batch_size 6 or 9"


@pytest.mark.row("B9")
def test_b9_an_override_given_twice_is_refused(tmp_path):
    error, text = refusal(tmp_path, overrides=["lora_r=8", "lora_r=16"])
    assert error.exit_code == ExitCode.USAGE
    assert "override lora_r: it is given twice" in text


@pytest.mark.row("B9")
def test_b9_one_setting_under_two_names_is_refused(tmp_path):
    error, text = refusal(tmp_path, "batch_size: 4\ntraining:\n  micro_batch_size: 8\n")
    assert "batch_size (" in text
    assert "mine.yaml:1)" in text
    assert "training.micro_batch_size (" in text
    assert error.exit_code == ExitCode.BAD_INPUT


@pytest.mark.row("B16")
def test_b16_a_token_is_refused_and_not_echoed(tmp_path):
    for flags in (
        {"model": "https://me:s3cretvalue@host/m"},
        {"model": "hf_s3cretvalue0123456789"},
    ):
        error, text = refusal(tmp_path, flags=flags)
        assert "s3cretvalue" not in text + (error.hint or "")
    error, text = refusal(tmp_path, environ={"LORAFIT_HUB_TOKEN": "s3cretvalue"})
    assert "a secret must not stand in settings" in text
    assert "s3cretvalue" not in text + (error.hint or "")


@pytest.mark.row("B18")
@pytest.mark.parametrize("spelling", ["2e-4", "2E-4", "0.0002", "2.0e-4"])
def test_b18_scientific_notation_is_a_number(tmp_path, spelling):
    assert run(tmp_path, f"learning_rate: {spelling}").settings.learning_rate == 2e-4


@pytest.mark.row("B19")
@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ('lora: {r: "16"}', "the text '16' is not a whole number", "write 16 without quotes"),
        ("lora_r: 16.0", "16 must be a whole number from 1 to 256, without a point", "write 16"),
        ("lora_r: true", "true is not a whole number", "the default is 8"),
        ("lora_r: 010", "the text '010' is not a whole number", "write 10 without leading zeros"),
        ("max_steps: 1:30", "the text '1:30' is not a whole number", "colons are for times"),
        ("max_steps: 1_000", "the text '1_000'", "write 1000 without underscores"),
        ("torch_compile: no", "the text 'no' is not true or false", "write true or false"),
        ("torch_compile: 1", "1 is not true or false", "the default is true"),
        ("lora_dropout: off", "the text 'off' is not a number", "write digits"),
        ("revision: 1234567", "1234567 is not text", "put the value in quotes"),
        ("target_modules: q_proj", "the text 'q_proj' is not a list", "[q_proj, k_proj]"),
        ("target_modules: []", "the list is empty", "[q_proj, k_proj]"),
        ("target_modules: [q_proj, 3]", "the list holds 3", "[q_proj, k_proj]"),
        ("optim: adam", "'adam' is not one of adamw_torch", None),
        ("lora: 8", "this is a section", "write `lora:` over them"),
    ],
)
def test_b19_types_are_strict(tmp_path, line, message, hint):
    error, text = refusal(tmp_path, line)
    assert error.exit_code == ExitCode.BAD_INPUT
    assert text.startswith("mine.yaml:1: ")
    assert message in text
    assert hint is None or hint in (error.hint or "")


@pytest.mark.row("B20")
def test_b20_all_unknown_keys_are_named_at_once_with_the_nearest(tmp_path):
    error, text = refusal(tmp_path, "lora_aplha: 16\nlearning_rte: 1e-4\nlora:\n  rnk: 8\n")
    assert [p.where.split("/")[-1] for p in error.problems] == [
        "mine.yaml:1: lora_aplha",
        "mine.yaml:2: learning_rte",
        "mine.yaml:4: lora.rnk",
    ]
    assert "did you mean lora_alpha?" in (error.hint or "")
    assert "did you mean learning_rate?" in (error.hint or "")
    assert text.count("there is no such setting") == 3


@pytest.mark.row("B21")
@pytest.mark.parametrize(
    ("suffix", "data"),
    [("yaml", "lora_r: 8\nseed: 1\nlora_r: 16\n"), ("json", '{"lora_r": 8,\n\n"lora_r": 16}')],
)
def test_b21_duplicate_key_names_both_lines(tmp_path, suffix, data):
    _, text = refusal(tmp_path, data, suffix)
    assert text.startswith(f"mine.{suffix}:3: ")
    assert "lora_r is given twice, on line 1 and on line 3" in text


@pytest.mark.row("B21")
def test_b21_a_dotted_key_and_its_section_are_the_same_setting(tmp_path):
    _, text = refusal(tmp_path, "lora.r: 8\nlora:\n  r: 16\n")
    assert text.startswith("mine.yaml:3: lora.r: it is given twice: here and at ")
    assert text.endswith("mine.yaml:1")


@pytest.mark.row("B22")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "mine.yaml:1: the file holds no settings"),
        ("# only a comment\n", "mine.yaml:1: the file holds no settings"),
        ("---\n", "mine.yaml:1: the file holds no settings"),
        ("{}\n", "mine.yaml:1: the file holds no settings"),
        ("\n- lora_r\n", "mine.yaml:2: the file is a list, not settings with names"),
        ("lora_r\n", "mine.yaml:1: the file is the value 'lora_r', not settings"),
        ("lora_r: 8\n---\nlora_r: 16\n", "mine.yaml:2: a second document starts here"),
    ],
)
def test_b22_a_file_must_be_one_mapping(tmp_path, data, message):
    _, text = refusal(tmp_path, data)
    assert text.startswith(message)


@pytest.mark.row("B24")
@pytest.mark.parametrize(
    ("data", "where", "shown"),
    [
        ("lora:\n\tr: 8\n", "2:1", r"  \tr: 8"),
        ("lora_r: 8\n  seed: 1\n", "2:7", "  seed: 1"),
        ('model: "x\nseed: 1\n', "3:1", "^"),
        ("a: [1, 2\nb: 3\n", "2:2", "b: 3"),
    ],
)
def test_b24_syntax_errors_show_the_line_and_column(tmp_path, data, where, shown):
    _, text = refusal(tmp_path, data)
    assert text.startswith(f"mine.yaml:{where}: this is not YAML: ")
    assert shown in text
    assert text.rstrip().endswith("^")


@pytest.mark.row("B25")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("lora_r: 8\n".encode("utf-16"), "byte 0 starts a UTF-16 or UTF-32 mark"),
        ("lora_r: 8\n".encode("utf-16-le"), "byte 1 is zero (binary data, or UTF-16)"),
        ("model: café\n".encode("latin-1"), "mine.yaml:1: the file is not UTF-8: byte 10 is 0xe9"),
        (b"a: 1\nb: \xff\n", "mine.yaml:2: the file is not UTF-8: byte 8 is 0xff"),
        (b"\x7fELF\0\0\0", "the file is not text: byte 4 is zero"),
        (b"a: \x07\n", "mine.yaml:1:4: the character"),
    ],
)
def test_b25_files_must_be_utf8_text(tmp_path, data, message):
    _, text = refusal(tmp_path, data)
    assert message in text


@pytest.mark.row("B25")
def test_b25_a_byte_order_mark_and_crlf_are_fine(tmp_path):
    assert run(tmp_path, b"\xef\xbb\xbflora_r: 16\r\nseed: 7\r\n").settings.lora_r == 16


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 9))


@pytest.mark.row("B26")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BOMB, "mine.yaml:1: anchors (&) and aliases (*) are not allowed"),
        ("seed: &s 1\n", "mine.yaml:1: anchors (&) and aliases"),
        ("&r a: 1\n", "mine.yaml:1: anchors (&) and aliases"),
        ("seed: 1\nlora_r: *s\n", "mine.yaml:2: anchors (&) and aliases"),
        ("a: &a [*a]\n", "mine.yaml:1: anchors (&) and aliases"),
        ("<<: {lora_r: 8}\n", "mine.yaml:1: merge keys (<<) are not allowed"),
    ],
)
def test_b26_anchors_aliases_and_merge_keys_are_refused(tmp_path, data, message):
    _, text = refusal(tmp_path, data)
    assert text.startswith(message)


@pytest.mark.row("B27")
@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!str", "!env", "!!binary"])
def test_b27_tags_are_refused_and_run_nothing(tmp_path, tag):
    canary = tmp_path / "canary"
    _, text = refusal(tmp_path, f'seed: 1\nmodel: {tag} ["touch {canary}"]\n')
    assert text.startswith("mine.yaml:2: tags (!) are not allowed in settings")
    assert not canary.exists()


@pytest.mark.row("B28")
@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
def test_b28_a_huge_file_is_refused_by_its_size(tmp_path, suffix):
    path = tmp_path / f"huge.{suffix}"
    with path.open("wb") as file:
        file.truncate(100 * 1024**2)
    with pytest.raises(
        ConfigError, match="the file has 100 MiB, and settings files may have 1 MiB"
    ):
        run(tmp_path, config_file=path)


@pytest.mark.row("B28")
@pytest.mark.parametrize(
    "data", ["a: " + "[" * 20_000, "a: " + "{b: " * 20_000, "- " * 20_000, "? " * 20_000]
)
def test_b28_deep_nesting_is_refused_quickly(tmp_path, data):
    start = time.process_time()
    _, text = refusal(tmp_path, data)
    assert "more than 20 levels of nesting" in text or "a key is the name of a setting" in text
    assert time.process_time() - start < 2


@pytest.mark.row("B25")
@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('a: 1\nmodel: "\\UFFFFFFFF"', "2:9"),
        ('model: "\\U00110000"', "1:9"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "1:1"),
        ('model: "\\ud800"', "1"),
        ('"\\udc00": 1', "1"),
    ],
)
def test_b25_escapes_that_are_no_character_are_refused(tmp_path, text, where):
    assert refusal(tmp_path, text)[1].startswith(f"mine.yaml:{where}: ")


@pytest.mark.row("B29")
@pytest.mark.parametrize("name", ["seed", "model", "lora_alpha", "schema_version", "torch_compile"])
def test_b29_a_number_of_thousands_of_digits_is_refused(tmp_path, name):
    _, text = refusal(tmp_path, f"{name} = 0x{'f' * 5000}", "toml")
    assert "a number of more than 25 digits" in text


@pytest.mark.row("B29")
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "null", "", "''", "1e400"])
def test_b29_numbers_must_be_numbers(tmp_path, value):
    _, text = refusal(tmp_path, f"learning_rate: {value}\n")
    assert text.startswith("mine.yaml:1: learning_rate: ")
    assert "a number above 0 to 1" in text


@pytest.mark.row("B29")
def test_b29_json_and_toml_have_no_nan_either(tmp_path):
    assert "NaN is not a number" in refusal(tmp_path, '{"learning_rate": NaN}', "json")[1]
    assert "nan is not finite" in refusal(tmp_path, "learning_rate = nan", "toml")[1]


@pytest.mark.row("B31")
@pytest.mark.parametrize(
    "line", ["lora_alpha: -1", "lora_alpha: .nan", "lora_dropout: 1.0", "lora_dropout: 1.5"]
)
def test_b31_alpha_and_dropout_have_bounds(tmp_path, line):
    _, text = refusal(tmp_path, line)
    assert text.startswith(f"mine.yaml:1: {line.split(':')[0]}: ")


@pytest.mark.row("B32")
def test_b32_a_warm_up_that_never_ends_is_refused(tmp_path):
    error, text = refusal(tmp_path, "warmup_steps: 10\n", flags={"max_steps": "10"})
    assert "a warm-up of 10 steps does not end within 10 steps" in text
    assert "warmup_steps must be below 10" in (error.hint or "")


@pytest.mark.row("B32")
def test_b32_intervals_without_effect_are_warned_about(tmp_path):
    resolved = run(tmp_path, "save_steps: 50\neval_steps: 60\nmax_steps: 20\nvalidation_split: 0\n")
    text = "\n".join(resolved.warnings)
    assert "ends before the first checkpoint at 50" in text
    assert "nothing is held out" in text


@pytest.mark.row("B34")
@pytest.mark.parametrize("key", ["trust_remote_code", "model.trust_remote_code"])
def test_b34_remote_code_is_refused_everywhere(tmp_path, key):
    assert "lorafit never runs code" in refusal(tmp_path, f"{key.split('.')[-1]}: true")[1]
    error, text = refusal(tmp_path, overrides=[f"{key}=true"])
    assert "lorafit never runs code that comes with a model" in text
    assert error.exit_code == ExitCode.USAGE


@pytest.mark.row("B34")
def test_b34_a_token_in_a_file_is_refused(tmp_path):
    _, text = refusal(tmp_path, "hub_token: hf_abc\n")
    assert "a secret must not stand in settings" in text
    assert "hf_abc" not in text


@pytest.mark.row("B35")
def test_b35_a_file_of_a_newer_lorafit_is_refused(tmp_path):
    _, text = refusal(tmp_path, "schema_version: 99\nlora_r: 8\n")
    assert "this file has schema 99: it needs a newer lorafit" in text


@pytest.mark.row("B15")
@pytest.mark.parametrize("kind", ["folder", "device", "loop"])
def test_b15_only_regular_files_are_read(tmp_path, kind):
    path = tmp_path / "odd.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match=r"this is|cannot be read"):
        run(tmp_path, config_file=path)


names = st.sampled_from([*Settings.model_fields, *ALIASES, *SECTIONS, "preset", "schema_version"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300) | st.text()
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(names, scalars, max_size=2)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names | st.text(max_size=8), values, min_size=1, max_size=4))
def test_any_settings_are_resolved_or_refused_with_a_config_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content, allow_nan=False))
    with contextlib.suppress(ConfigError):
        resolve_batch(run(None, config_file=path), num_devices=1)


@settings(max_examples=150, deadline=None)
@given(names, st.text(max_size=12) | st.floats().map(str) | st.integers().map(str))
def test_any_flag_is_resolved_or_refused_with_a_usage_error(name, text):
    try:
        code = None
        run(None, overrides=[f"{name}={text}"])
    except ConfigError as error:
        code = error.exit_code
    assert code in (None, ExitCode.USAGE)


def test_no_message_holds_a_traceback_or_pydantic_words(tmp_path):
    lines = "lora_r: x\noptim: 1\ntorch_compile: 2\ntarget_modules: {a: 1}\nmodel: [1]\nseed: -1\n"
    error, text = refusal(tmp_path, lines)
    assert isinstance(error, LorafitError)
    assert len(error.problems) == 6
    assert not re.search(r"Traceback|pydantic|Input should|type=", text)
