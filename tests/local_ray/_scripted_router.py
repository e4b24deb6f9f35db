"""The page and the endpoints it stands on, over a real socket, with answers a test gives piece by piece."""

from __future__ import annotations

import json
import queue
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serve_apps.page import page_files

LOOK_S = 0.05
DECISION = {
    "policy": "keyword",
    "chosen": "orders",
    "reason": "'invoice' and 'refund' cover 0.82 of its keywords",
    "runner_up": "base",
    "scores": {"orders": 0.82, "base": 0.5, "poems": 0.04},
    "confidence": 0.64,
    "predicted_wait_s": 0.12,
    "fell_back": False,
}
EXPERTS = [
    {
        "name": "base",
        "state": "live",
        "artifact": "9c1e22d04b7a6f10",
        "reason": "",
        "replicas": 2,
        "up": True,
        "running": 3,
        "waiting_s": 0.0,
        "speculation": {"on": True, "acceptance": 0.62},
    },
    {
        "name": "orders",
        "state": "live",
        "artifact": "1f2e3d4c5b6a7980",
        "reason": "promoted: gain 0.21 of 40 items, confidence 0.98",
        "replicas": 2,
        "up": True,
        "running": 1,
        "waiting_s": 0.4,
        "speculation": None,
    },
    {
        "name": "poems",
        "state": "canary",
        "artifact": "77aa01f3c2d94e58",
        "reason": "5% of the requests for 10 minutes",
        "replicas": 1,
        "up": True,
        "running": 0,
        "waiting_s": 0.0,
        "speculation": None,
    },
]
MODELS = [
    *({"id": name, "object": "model"} for name in ("auto", "largeforge/keyword", "largeforge/knn")),
    *({"id": one["name"], "object": "model", "artifact": one["artifact"]} for one in EXPERTS[:2]),
]


class ScriptedRouter:
    """What the endpoints answer, to be changed by a test, and what they were asked.

    ``pieces`` feeds the stream under way: text, the dict of an error event, BREAK, or END.
    """

    BREAK, END = object(), object()

    def __init__(self) -> None:
        self.pieces: queue.Queue[Any] = queue.Queue()
        self.left = threading.Event()
        """Set once a client has closed its connection amid a stream."""
        self.asked: list[tuple[str, Any]] = []
        """Path and body of each POST that was let in."""
        self.key: str | None = None
        self.refusal: tuple[int, bytes] | None = None
        """Status and body that every POST gets instead of an answer."""
        self.experts, self.models, self.decision = list(EXPERTS), list(MODELS), dict(DECISION)
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.0, so the end of a stream is the end of its connection."""

    router: ScriptedRouter

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        file = page_files().get(self.path)
        if file is not None:
            status, body = file.reply(self.headers.get("if-none-match", ""))
            self._send(status, body, file.content_type, file.headers)
        elif not self._let_in():
            return
        elif self.path == "/v1/models":
            self._json({"object": "list", "data": self.router.models})
        elif self.path == "/v1/experts":
            self._json({"data": self.router.experts})
        else:
            self._fail(404, f"path '{self.path}' does not exist", "unknown_path")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._let_in():
            return
        router = self.router
        router.asked.append((self.path, body))
        if router.refusal is not None:
            self._send(*router.refusal, "application/json", {})
        elif self.path == "/v1/route":
            self._json({"request_id": "chatcmpl-1", **router.decision, "artifact": EXPERTS[1]["artifact"]})
        else:
            self._stream()

    def _let_in(self) -> bool:
        given = self.headers.get("authorization")
        if self.router.key is None or given == f"Bearer {self.router.key}":
            return True
        if given is None:
            self._fail(401, "no API key was given; send Authorization: Bearer KEY", "missing_api_key")
        else:
            self._fail(401, "the API key is unknown; ask for a new one", "invalid_api_key")
        return False

    def _stream(self) -> None:
        headers = {
            "x-largeforge-expert": self.router.decision["chosen"],
            "x-largeforge-artifact": str(EXPERTS[1]["artifact"]),
            "x-largeforge-decision": json.dumps(self.router.decision),
            "x-request-id": "chatcmpl-1",
        }
        self._send(200, b"", "text/event-stream", headers)
        num_pieces = 0
        while True:
            try:
                piece = self.router.pieces.get(timeout=LOOK_S)
            except queue.Empty:
                if self._client_left():
                    self.router.left.set()
                    return
                continue
            if piece is ScriptedRouter.BREAK:
                return
            if isinstance(piece, dict):
                self._event(piece)
                return
            if piece is ScriptedRouter.END:
                self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
                self._event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": num_pieces}})
                self.wfile.write(b"data: [DONE]\n\n")
                return
            num_pieces += 1
            self._event({"choices": [{"index": 0, "delta": {"content": piece}}]})

    def _client_left(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""

    def _event(self, value: Any) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", {})

    def _fail(self, status: int, message: str, code: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self._json({"error": error}, status)

    def _send(self, status: int, body: bytes, content_type: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": content_type, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def scripted_router() -> Iterator[ScriptedRouter]:
    """A router that answers at its ``url`` until the block ends."""
    router = ScriptedRouter()
    handler = type("RouterHandler", (Handler,), {"router": router})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    router.url = f"http://127.0.0.1:{server.server_port}/"
    try:
        yield router
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
