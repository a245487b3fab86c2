"""Property tests: whatever a file or a command line says, the answer is a result or a reason."""

import inspect
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.targets import TARGETS, seeds_of
from lorafit.errors import LorafitError

QUICK = settings(
    max_examples=40,
    deadline=timedelta(minutes=5),  # a hang, not a busy machine
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
LONG = settings(QUICK, max_examples=2000, derandomize=False)

FRAGMENTS = st.sampled_from(
    [b"\0", b"\n", b"\r\n", b'"', b"'", b"{", b"}", b"[", b"]", b":", b",", b"-", b"&a", b"*a",
     b"!!python/name:os", b"<<", b"NaN", b"1e999", b"-1", b"9" * 400, b"\xff", b"\xef\xbb\xbf",
     b"\\ud800", b"\\u0000", b"\x1b[2J", b"null", b"true", b"../", b"[" * 200, b"{\"a\":" * 200,
     b"files", b"step", b"text", b"messages", b"lora_r", b"preset", b"--", b"--json", b"--help",
     b"\xe2\x80\xa8", b"#", b"%YAML 9.9", b"\t", b"0x", b"=", b"://u:p@", b"/dev/zero"]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw a sound input with up to four pieces of it cut out, replaced or added."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        piece = draw(st.one_of(st.just(b""), FRAGMENTS, st.binary(max_size=6)))
        data = data[:start] + piece + data[end:]
    return data


def anything(name: str) -> st.SearchStrategy[bytes]:
    """Return inputs of a target: damaged ones mostly, and some that are no such thing at all."""
    seeds = seeds_of(name)
    return st.one_of(damaged(seeds), damaged(seeds), st.binary(max_size=200))


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused_with_a_reason(name, quiet_libraries):
    QUICK(given(anything(name))(TARGETS[name]))()


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_great_many_bytes_are_read_or_refused_with_a_reason(name, quiet_libraries):
    LONG(given(anything(name))(TARGETS[name]))()


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_begins_with_is_answered_and_not_all_of_it_refused(name, quiet_libraries):
    refusals = []
    for data in seeds_of(name):
        TARGETS[name](data)
        try:
            inspect.unwrap(TARGETS[name])(data)
        except LorafitError as refusal:
            refusals.append(refusal)
    assert len(refusals) < len(seeds_of(name)), refusals


def test_a_finding_is_found(monkeypatch):
    """A reader that fails in its own way is noticed by the very property above."""
    from lorafit.data import records

    monkeypatch.setattr(records, "collect_records", lambda *_: {}["missing"])
    with pytest.raises(KeyError):
        TARGETS["rows_csv"](seeds_of("rows_csv")[0])
