"""The page of a run that goes on, served to this machine alone.

A web page from elsewhere could reach a loopback port by a name of its own that it points there
(DNS rebinding), so requests under any other name than loopback's are refused.
"""

import json
import threading
from dataclasses import dataclass, replace
from hashlib import sha256
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from lorafit.errors import InputError, UsageError
from lorafit.report.events import EVENTS_FILE
from lorafit.report.html.curves import columns_of
from lorafit.report.html.render import render_page, render_sections
from lorafit.report.html.source import RunData, plain_event, read_record, read_samples

HOST = "127.0.0.1"
_NAMES = frozenset({HOST, "localhost"})
_MAX_ROWS = 5_000
"""Events of one answer; the page asks for the rest at once."""


class EventTail:
    """Reads events.jsonl as it grows: each line once, and only whole lines.

    A resumed run replaces the file by a shorter one; reading then starts again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self.generation = 0
        """How often the file was replaced."""
        self.events: list[dict[str, Any]] = []

    def read(self) -> None:
        """Take in what was written since the last call."""
        try:
            status = self._path.stat()
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._restart(status.st_ino)
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                written = stream.read()
        except OSError:
            return  # not there yet, or between two versions: the next call will see
        whole, newline, _ = written.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        self.events += [event for line in whole.split(b"\n") if (event := _event(line))]

    def _restart(self, inode: int) -> None:
        self.generation += self._inode != 0
        self._inode, self._offset, self.events = inode, 0, []


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
        int(event["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return plain_event(event) if isinstance(event, dict) else None


@dataclass(frozen=True)
class Position:
    """What a page has already: events of a generation, and a version of the sections."""

    generation: str = ""
    next: int = 0
    version: str = ""


class LiveRun:
    """A run as its folder shows it now."""

    def __init__(self, folder: Path) -> None:
        """Open a run.

        Raises:
            InputError: the folder holds no run.
        """
        self._tail = EventTail(folder / EVENTS_FILE)
        self._lock = threading.Lock()
        self._run = RunData(folder, folder.resolve().name, read_record(folder))

    def page(self) -> str:
        """Return the page, which then asks for everything that changes."""
        with self._lock:
            return render_page([self._refresh()], live=True)

    def state(self, has: Position) -> dict[str, Any]:
        """Return what is new since a position: rows of the curves, and sections if any changed."""
        with self._lock:
            run = self._refresh()
            generation = str(self._tail.generation)
            restarted = has.generation != generation
            start = 0 if restarted else min(max(has.next, 0), len(run.events))
            rows = run.events[start : start + _MAX_ROWS]
            sections = render_sections(run)
        version = sha256(json.dumps(sections).encode()).hexdigest()
        return {
            "status": run.record["status"],
            "generation": generation,
            "restarted": restarted,
            "next": start + len(rows),
            "more": start + len(rows) < len(run.events),
            "columns": columns_of(rows),
            "version": version,
            "sections": None if version == has.version else sections,
        }

    def _refresh(self) -> RunData:
        self._tail.read()
        folder = self._run.folder
        try:
            record = read_record(folder)
        except InputError:
            record = self._run.record  # half replaced, or gone: what was last known stays
        samples = read_samples(folder)
        self._run = replace(self._run, record=record, events=self._tail.events, samples=samples)
        return self._run


class LiveServer(ThreadingHTTPServer):
    """Serves one run on the loopback interface, read only."""

    daemon_threads = True
    # Two servers on one port would answer by turns.
    allow_reuse_port = False

    def __init__(self, run: LiveRun, port: int) -> None:
        """Listen on a port; 0 lets the system choose one.

        Raises:
            UsageError: the port is taken or not allowed.
        """
        self.run = run
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as problem:
            raise UsageError(
                f"port {port} cannot be used: {problem.strerror or problem}",
                hint="leave --port out, and a free one is chosen",
            ) from None

    @property
    def url(self) -> str:
        """The address to open."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    server_version = "lorafit"
    sys_version = ""
    timeout = 30

    def do_GET(self) -> None:  # the name is http.server's
        """Answer the page or its state."""
        if not self._is_local_name():
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", "open this page as localhost\n")
            return
        try:
            self._answer(*self._find(urlsplit(self.path)))
        except InputError as problem:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{problem}\n")

    def _find(self, url: SplitResult) -> tuple[HTTPStatus, str, str]:
        if url.path == "/":
            return HTTPStatus.OK, "text/html", self.server.run.page()
        if url.path == "/state":
            state = self.server.run.state(_position(url.query))
            return HTTPStatus.OK, "application/json", json.dumps(state, allow_nan=False)
        return HTTPStatus.NOT_FOUND, "text/plain", "there is no such page\n"

    def _is_local_name(self) -> bool:
        name, _, port = self.headers.get("Host", "").rpartition(":")
        return name in _NAMES and port == str(self.server.server_port)

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # http.server's name
        """Say nothing: every page asks once a second."""

    def handle(self) -> None:
        """Answer requests until the browser leaves, which is no error."""
        try:
            super().handle()
        except (ConnectionError, TimeoutError):
            self.close_connection = True


def _position(query: str) -> Position:
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    number = given.get("next", "")
    return Position(
        generation=given.get("generation", ""),
        next=int(number) if number.isdecimal() and len(number) < 12 else 0,
        version=given.get("version", ""),
    )
