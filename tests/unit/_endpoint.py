"""An OpenAI-compatible server on this machine that plays a script, and knows what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT_TOKENS, COMPLETION_TOKENS = 12, 5


@dataclass(frozen=True)
class Reply:
    """``after_s`` passes before the first byte, ``trickle_s`` before every further one."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    trickle_s: float = 0.0
    drops: bool = False


def completion(text: str, usage: bool = True) -> dict[str, Any]:
    """A chat completion as OpenAI's server words it."""
    message = {"role": "assistant", "content": text}
    counts = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 17}
    reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "big"}
    choices = [{"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}]
    return reply | {"choices": choices} | ({"usage": counts} if usage else {})


def refusal(message: str, code: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": code, "param": None, "code": code}}


@dataclass(frozen=True)
class Asked:
    at: float
    path: str
    authorization: str | None
    payload: dict[str, Any]

    @property
    def prompt(self) -> str:
        return str(self.payload["messages"][-1]["content"])


class ScriptedServer(ThreadingHTTPServer):
    """It replies as the script says, and after its end echoes each prompt ``slow_s`` after it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, script: tuple[Reply, ...], slow_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once, self._lock = 0, threading.Lock()
        self._script, self._slow_s = iter(script), slow_s

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def reply(self, asked: Asked) -> Reply:
        echo = Reply(body=completion(f"echo {asked.prompt}"), after_s=self._slow_s)
        with self._lock:
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            chosen = next(self._script, echo)
        time.sleep(chosen.after_s)
        with self._lock:
            self._at_once -= 1
        return chosen

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is part of the script."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reply = self.server.reply(Asked(time.monotonic(), self.path, self.headers["authorization"], payload))
        if reply.drops:
            self.close_connection = True
            return
        body = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
        self.send_response(reply.status)
        for name, value in ({"content-type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        for piece in [body[i : i + 1] for i in range(len(body))] if reply.trickle_s else [body]:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(reply.trickle_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: what was asked is kept in ``asked``."""


Serve = Callable[..., ScriptedServer]


@contextmanager
def servers() -> Iterator[Serve]:
    """A function that starts servers, which end with the block."""
    started: list[ScriptedServer] = []

    def serve(
        *script: Reply, slow_s: float = 0.0, kind: type[ScriptedServer] = ScriptedServer
    ) -> ScriptedServer:
        server = kind(script, slow_s)
        started.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    try:
        yield serve
    finally:
        for server in started:
            server.shutdown()
            server.server_close()
