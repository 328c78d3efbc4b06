"""A small stand-in for the Hugging Face Hub, and its address as the fixture `hub`."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload needs."""

    private = True
    files: list[str]
    created: dict[str, object]

    def do_GET(self) -> None:
        self._answer({"id": "lab/model", "private": self.private, "siblings": [], "tags": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            type(self).created = json.loads(body)
            self._answer({"url": f"{self._address}/lab/model"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            type(self).files = sorted(line["value"]["path"] for line in lines if line["key"] == "file")
            commit = f"{self._address}/lab/model/commit/{'0' * 40}"
            self._answer({"commitUrl": commit, "commitOid": "0" * 40, "pullRequestUrl": None})
        else:
            self._answer({})

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _answer(self, found: dict[str, object]) -> None:
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of a hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
