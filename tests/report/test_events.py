"""events.jsonl after a power loss: what cannot be read is left out, and the rest is kept."""

import pytest

from lorafit.report.events import EVENTS_FILE, EventLog, read_events

DAMAGE = [
    b'{"step": 3, "lo',
    b"\0\0\0\0",
    b"\xff\xfe\x80",
    b'{"step": 1e999}',
    b'{"step": null}',
    b'{"loss": 1.0}',
    b"[3]",
    b"[" * 100_000,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_a_line_that_cannot_be_read_costs_that_line_only(tmp_path, damage):
    path = tmp_path / EVENTS_FILE
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + damage + b'\n{"step": 2, "loss": 1.0}\n')
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    EventLog(tmp_path).keep_until(1)
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'
