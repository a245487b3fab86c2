"""Row B58 against a hub of our own on this machine: what it refuses, and what it never answers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
from tiny import start_lorafit

ANSWERS = {
    "nobody/misspelt": (404, "RepoNotFound"),
    "owner/gated": (403, "GatedRepo"),
    "owner/model": (404, "RevisionNotFound"),
}


class Hub(BaseHTTPRequestHandler):
    """Answers every request for a model with the one error that it is known for."""

    unanswered: ClassVar[list[str]] = []
    """Paths that were asked for in vain."""

    def do_GET(self) -> None:
        name = next((name for name in ANSWERS if name in self.path), None)
        if name is None:
            self.unanswered.append(self.path)
            self.connection.recv(1)  # until the other side hangs up
            return
        status, code = ANSWERS[name]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"the hub says {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(hub, tiny_data, tmp_path):
    """Return a function that asks for the tokenizer of a hub model, in a process of its own."""

    def ask(name, *more):
        command = ("evaluate", "--data", tiny_data, "--device", "cpu", "--model", name, *more)
        no_proxy = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"), "")
        process = start_lorafit(
            *command, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"), **no_proxy
        )
        out, err = process.communicate(timeout=600)
        assert (process.returncode, out) == (3, ""), err
        assert "Traceback" not in err
        return err

    return ask


@pytest.mark.row("B58")
@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["owner/gated"], "owner/gated is gated: its owner must accept you first",
         "hint: ask for access on the hub page of owner/gated, then type: hf auth login"),
        pytest.param(
            ["nobody/misspelt"], "the hub has no model nobody/misspelt, or it is private",
            "hint: check the spelling; for a private model type: hf auth login",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["owner/model", "--revision", "v9"], "owner/model has no revision v9", "",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_b58_what_the_hub_refuses_is_said_with_the_next_command(ask, arguments, message, hint):
    err = ask(*arguments)
    assert f"error: {message}" in err
    assert hint in err


@pytest.mark.row("B58")
@pytest.mark.slow
def test_b58_a_hub_that_never_answers_is_given_up_within_ten_seconds(ask):
    from lorafit.model import hub

    # A wait to connect and a wait for the answer, each of them once: the sum is what it can take.
    assert hub._CONNECT_TIMEOUT_SECONDS + hub._ANSWER_TIMEOUT_SECONDS < 10
    err = ask("owner/silent")
    assert "the hub cannot be reached" in err
    assert "hf download owner/silent --local-dir FOLDER" in err
    # The library asks for something of its own first, with a shorter time-out.
    assert len([path for path in Hub.unanswered if "owner/silent" in path]) == 1
