"""The live page in a real browser: it grows with the run, and keeps what a person opened."""

import json
import threading

import pytest
from made_runs import append_steps, write_run

from lorafit.report.events import EventLog
from lorafit.report.html.live import LiveRun, LiveServer


@pytest.fixture
def live(tmp_path, visit):
    """A run that goes on, and a page that watches it."""
    samples = tuple({"step": n, "prompt": "p", "completion": f"text {n}"} for n in (1, 2))
    folder = write_run(tmp_path / "run", num_steps=40, status="running", samples=samples)
    with LiveServer(LiveRun(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = visit()
        page.open(server.url)
        until(page, "step 40 of 200")
        yield folder, page, server
        server.shutdown()
        thread.join()


def until(page, text):
    page.page.wait_for_function(
        "text => document.getElementById('live-state').textContent.includes(text)", arg=text
    )


def last_step(page):
    return page.page.evaluate("lorafit.data.runs[0].columns.step.at(-1)")


def test_the_curves_grow_while_the_run_goes_on(live):
    folder, page, server = live
    before = page.picture("loss")
    append_steps(folder, 41, 90)
    until(page, "step 90 of 200")
    assert page.legend("loss").startswith("step 90")
    page.wait_until_redrawn("loss", before)
    assert all(count > 150 for count in page.painted().values())
    assert page.page.evaluate("document.getElementById('live-progress').value") == 90
    assert "90" in page.page.inner_text(".tiles")
    assert page.complaints == []
    assert all(url.startswith(server.url) for url in page.requests)


def test_a_resumed_run_draws_its_repeated_steps_once(live):
    folder, page, _ = live
    EventLog(folder).keep_until(20)
    append_steps(folder, 21, 55)
    until(page, "step 55 of 200")
    assert page.page.evaluate("lorafit.data.runs[0].columns.step") == list(range(1, 56))


def test_what_a_person_opened_stays_open(live):
    folder, page, _ = live
    page.page.click("#samples summary")
    with (folder / "samples.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": 50, "prompt": "p", "completion": "text 50"}) + "\n")
    page.page.wait_for_selector("text=text 50")
    assert page.page.locator("#samples details").get_attribute("open") is not None
    assert page.page.is_visible("text=text 1")


def test_the_end_of_the_run_is_said(live):
    folder, page, _ = live
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "completed"}))
    until(page, "the run has ended: completed")
    assert page.page.inner_text(".status") == "completed"
    assert not page.page.is_visible("#live-progress")


def test_a_server_that_is_gone_is_said_and_the_figures_stay(live):
    _, page, server = live
    server.shutdown()
    server.server_close()
    until(page, "the server does not answer")
    assert last_step(page) == 40
    assert page.legend("loss").startswith("step 40")
