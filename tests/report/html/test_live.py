"""The live page's server: what it answers, to whom, and how it follows the files."""

import http.client
import json
import os
import signal
import threading
import time
from urllib.parse import urlsplit

import pytest
from made_runs import append_steps, write_run
from tiny import start_lorafit

from lorafit.errors import UsageError
from lorafit.report.events import EventLog
from lorafit.report.html.live import EventTail, LiveRun, LiveServer


@pytest.fixture
def served(tmp_path):
    """A server of a run that goes on, its folder, and a function that asks it."""
    folder = write_run(tmp_path / "run", num_steps=20, status="running")
    with LiveServer(LiveRun(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def ask(path="/", method="GET", host=None):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            try:
                headers = {"Host": host or f"127.0.0.1:{server.server_port}"}
                connection.request(method, path, headers=headers)
                response = connection.getresponse()
                return response.status, response.read().decode(), response.headers
            finally:
                connection.close()

        yield server, folder, ask
        server.shutdown()
        thread.join()


def test_the_tail_reads_each_whole_line_once(tmp_path):
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    tail.read()
    assert tail.events == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    tail.read()
    assert [event["step"] for event in tail.events] == [1, 2]
    with path.open("a") as stream:
        stream.write('ep": 3}\nnot json\n[]\n')
    tail.read()
    assert [event["step"] for event in tail.events] == [1, 2, 3]


def test_the_tail_starts_again_when_a_resumed_run_replaced_the_file(tmp_path):
    folder = write_run(tmp_path, num_steps=20, status="running")
    tail = EventTail(folder / "events.jsonl")
    tail.read()
    EventLog(folder).keep_until(10)
    append_steps(folder, 11, 40)
    tail.read()
    assert [event["step"] for event in tail.events] == list(range(1, 41))
    assert tail.generation == 1


def test_state_sends_what_is_new_and_sections_only_when_they_changed(tmp_path):
    from lorafit.report.html.live import Position

    folder = write_run(tmp_path, num_steps=3, status="running")
    run = LiveRun(folder)
    first = run.state(Position())
    assert first["restarted"]
    assert first["columns"]["step"] == [1, 2, 3]
    assert first["sections"].keys() == {"summary", "memory", "samples", "timeline"}
    has = Position(first["generation"], first["next"], first["version"])
    again = run.state(has)
    assert again["columns"]["step"] == []
    assert again["sections"] is None
    append_steps(folder, 4, 5)
    more = run.state(has)
    assert not more["restarted"]
    assert more["columns"]["step"] == [4, 5]
    assert "Steps" in more["sections"]["summary"]


def test_a_long_log_comes_in_pieces(tmp_path):
    from lorafit.report.html.live import Position

    folder = write_run(tmp_path, num_steps=1, status="running")
    (folder / "events.jsonl").write_text("".join(f'{{"step": {n}}}\n' for n in range(12_000)))
    run, position, sizes = LiveRun(folder), Position(), []
    while True:
        state = run.state(position)
        sizes.append(len(state["columns"]["step"]))
        position = Position(state["generation"], state["next"], state["version"])
        if not state["more"]:
            break
    assert sizes == [5000, 5000, 2000]


def test_a_half_replaced_record_keeps_the_last_one(tmp_path):
    from lorafit.report.html.live import Position

    folder = write_run(tmp_path, num_steps=1, status="running")
    run = LiveRun(folder)
    (folder / "run.json").write_text('{"sta')
    assert run.state(Position())["status"] == "running"


def test_the_page_and_its_state_are_served(served):
    _, _, ask = served
    status, page, headers = ask()
    assert status == 200
    assert page.startswith("<!doctype html>")
    assert "connect-src &#39;self&#39;" in page
    assert headers["Cache-Control"] == "no-store"
    status, text, _ = ask("/state?next=5&generation=0")
    assert status == 200
    assert json.loads(text)["columns"]["step"] == list(range(6, 21))
    assert ask("/run.json")[0] == 404
    assert ask("/../run.json")[0] == 404


@pytest.mark.parametrize("query", ["next=-1", "next=x", "next=" + "9" * 500, "generation=%00", "a"])
def test_nonsense_in_a_query_is_the_beginning(served, query):
    _, _, ask = served
    status, text, _ = ask(f"/state?{query}")
    assert status == 200
    assert json.loads(text)["columns"]["step"][0] == 1


def test_another_host_name_is_refused(served):
    server, _, ask = served
    port = server.server_port
    assert ask(host=f"localhost:{port}")[0] == 200
    for name in (f"evil.example:{port}", "127.0.0.1", f"localhost.evil.example:{port}",
                 f"localhost:{port + 1}", f"127.0.0.1:{port}@evil.example"):  # fmt: skip
        status, text, _ = ask(host=name)
        assert status == 403, name
        assert "<html" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_reading_is_allowed(served, method):
    _, _, ask = served
    assert ask(method=method)[0] == 501


def test_a_damaged_record_is_said_not_thrown(served):
    _, folder, ask = served
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"attempts": 3}))
    status, text, _ = ask("/state")
    assert status == 500
    assert "holds a value that no run writes" in text


def test_a_taken_port_is_a_usage_error(served):
    server, folder, _ = served
    with pytest.raises(UsageError, match=f"port {server.server_port} cannot be used"):
        LiveServer(LiveRun(folder), server.server_port)


def test_serve_ends_cleanly_on_ctrl_c(tmp_path):
    folder = write_run(tmp_path / "run", num_steps=5, status="running")
    process = start_lorafit("serve", folder)
    url = urlsplit(process.stdout.readline().strip())
    assert url.hostname == "127.0.0.1"
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=600)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    connection.close()
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0
    assert "Ctrl-C ends the server, not the run" in err
    assert "Traceback" not in out + err


def test_serve_needs_a_run(run_lorafit, tmp_path):
    outcome = run_lorafit("serve", tmp_path)
    assert outcome.code == 3
    assert "holds no run.json" in outcome.err
