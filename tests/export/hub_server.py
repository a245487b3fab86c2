"""A hub for tests: the part of the Hugging Face hub's API that an upload speaks, on loopback."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What the server was asked for and what it holds."""

    token: str
    url: str = ""
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    """By `OWNER/NAME/path`, as committed."""
    large: dict[str, bytes] = field(default_factory=dict)
    """Uploaded objects by SHA-256, committed or not."""
    tokens: set[str] = field(default_factory=set)


@contextmanager
def running_hub(token: str) -> Iterator[Hub]:
    """Serve a hub that takes this token, until the block ends."""
    hub = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.tokens.add(self.headers.get("Authorization", ""))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer(401, {"error": "Invalid username or password."})
                return
            for pattern, act in _ROUTES:
                if found := re.fullmatch(pattern, self.path):
                    self.answer(*act(hub, body, *found.groups()))
                    return
            self.answer(404, {"error": f"no {self.path}"})

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.large[self.path.rpartition("/")[2]] = body
            self.answer(200, {})

        def do_GET(self) -> None:
            self.answer(404, {"error": f"no {self.path}"})

        def answer(self, status: int, document: dict[str, Any]) -> None:
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


Answer = tuple[int, dict[str, Any]]


def _create(hub: Hub, body: bytes) -> Answer:
    asked = json.loads(body)
    hub.created.append(asked)
    name = f"{asked['organization'] or 'me'}/{asked['name']}"
    return 200, {"url": f"{hub.url}/{name}", "name": name, "id": name}


def _validate(hub: Hub, body: bytes) -> Answer:
    return 200, {"errors": [], "warnings": []}


def _preupload(hub: Hub, body: bytes, repository: str) -> Answer:
    modes = [
        {"path": file["path"], "shouldIgnore": False,
         "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
        for file in json.loads(body)["files"]
    ]  # fmt: skip
    return 200, {"files": modes}


def _batch(hub: Hub, body: bytes, repository: str) -> Answer:
    objects = [
        {**one, "actions": {"upload": {"href": f"{hub.url}/objects/{one['oid']}"}}}
        for one in json.loads(body)["objects"]
    ]
    return 200, {"transfer": "basic", "objects": objects}


def _commit(hub: Hub, body: bytes, repository: str) -> Answer:
    for line in body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            hub.files[f"{repository}/{value['path']}"] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            hub.files[f"{repository}/{value['path']}"] = hub.large[value["oid"]]
    url = f"{hub.url}/{repository}/commit/{'0' * 40}"
    return 200, {"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""}


_ROUTES = (
    (r"/api/repos/create", _create),
    (r"/api/validate-yaml", _validate),
    (r"/api/models/([^/]+/[^/]+)/preupload/main", _preupload),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _batch),
    (r"/api/models/([^/]+/[^/]+)/commit/main", _commit),
)
