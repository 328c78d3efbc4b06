"""As much of a W&B server as a client needs to upload runs: it keeps every history row and what runs ended with."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Uploaded:
    """One run. A file offset that was sent twice counts once, as on the real server."""

    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    upserts: list[dict[str, Any]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {key: value for key, value in self.history[i].items() if not key.startswith("_")}
            for i in sorted(self.history)
        ]

    def status(self) -> dict[str, Any] | None:
        """Answer a client that may resume; None for a run that has not begun."""
        if not self.history:
            return None
        last = json.dumps(self.history[max(self.history)])
        return {
            "id": "b",
            "name": "n",
            "displayName": "n",
            "summaryMetrics": last,
            "logLineCount": 0,
            "historyLineCount": len(self.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([last]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


class WandbServer(ThreadingHTTPServer):
    """Listens on a free loopback port; `serve_forever` in a thread."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests = 0
        self.runs: dict[str, Uploaded] = {}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_GET(self) -> None:
        self.server.requests += 1
        self._answer({})

    def do_POST(self) -> None:
        self.server.requests += 1
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        if self.path.endswith("/file_stream"):
            self._answer(self._stream(self.path.split("/")[-2], json.loads(content)))
        elif self.path.endswith("/graphql"):
            self._answer(self._query(json.loads(content)))
        else:
            self._answer({})

    def _stream(self, run: str, sent: dict[str, Any]) -> dict[str, Any]:
        uploaded = self.server.runs[run]
        history = (sent.get("files") or {}).get("wandb-history.jsonl") or {"offset": 0, "content": []}
        for index, line in enumerate(history["content"], history["offset"]):
            uploaded.history[index] = json.loads(line)
        if sent.get("exitcode") is not None:
            uploaded.exit_codes.append(sent["exitcode"])
        return {"exitcode": None, "limits": {}}

    def _query(self, query: dict[str, Any]) -> dict[str, Any]:
        operation, variables = query["operationName"], query.get("variables") or {}
        project = {"id": "p", "name": "project", "entity": {"id": "e", "name": "entity"}}
        if operation == "RunResumeStatus":
            uploaded = self.server.runs.get(variables["name"], Uploaded())
            return {"data": {"model": {**project, "bucket": uploaded.status()}}}
        if operation == "UpsertBucket":
            uploaded = self.server.runs.setdefault(variables["name"], Uploaded())
            uploaded.upserts.append(variables)
            uploaded.config |= json.loads(variables.get("config") or "{}")
            bucket = {"id": "b", "name": variables["name"], "displayName": "n", "description": None, "config": "{}"}
            found = {**bucket, "sweepName": None, "project": project, "historyLineCount": 0}
            return {"data": {"upsertBucket": {"bucket": found, "inserted": True}}}
        return {"data": None, "errors": [{"message": f"{operation} is not known here"}]}

    def _answer(self, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass
