"""A served router as a process of its own, seen from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

from tests.local_ray.conftest import ENVIRONMENT, free_port

ADMIN = "the admin token of these tests"
ORDER = "Order as JSON with name, count, item, city: Please send 7 pillows to Ingrid in Lisbon."


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    url: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def admin(self, method: str, path: str = "/admin/experts", **body: Any) -> tuple[int, dict[str, Any]]:
        """The status and the reply of the admin API."""
        return self.request(method, path, body or None, ADMIN)

    def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, key: str = ""
    ) -> tuple[int, dict[str, Any]]:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def experts(self) -> dict[str, dict[str, Any]]:
        """The newest card of each expert, by name."""
        return {card["name"]: card for card in self.request("GET", "/v1/experts")[1]["data"]}


def start_server(store: Path, folder: Path, *more: str) -> Server:
    """Start it and wait until every expert answers."""
    port, token = free_port(), folder / "admin-token"
    token.write_text(ADMIN)
    token.chmod(0o600)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "serve_apps.run", "--store", str(store), "--port", str(port)),
            *("--admin-token", str(token), *more),
        ],
        env=ENVIRONMENT,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server(process, f"http://127.0.0.1:{port}")
    wait_for(server.is_ready, 120, lambda: process.poll() is None)
    return server


def stop_server(server: Server) -> None:
    if server.process.poll() is None:
        server.process.terminate()
        server.process.wait(60)


def wait_for(condition: Callable[[], Any], limit_s: float, alive: Callable[[], bool] = lambda: True) -> float:
    """Seconds until ``condition``; fails when they exceed the limit or what is waited for has died."""
    started = time.monotonic()
    while not condition():
        assert alive(), "the process ended"
        assert time.monotonic() - started < limit_s, f"not within {limit_s} s"
        time.sleep(0.1)
    return time.monotonic() - started


def ask(server: Server, model: str, question: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": question}]
    return server.client.chat.completions.with_raw_response.create(
        model=model, messages=messages, temperature=0, **({"max_tokens": 40} | options)
    )


def family(server: Server, title: str) -> psutil.Process:
    """The process of the server's whose title has this, as soon as there is one."""
    found: list[psutil.Process] = []

    def there() -> bool:
        children = psutil.Process(server.process.pid).children(recursive=True)
        found[:] = [p for p in children if title in " ".join(p.cmdline())]
        return bool(found)

    wait_for(there, 30)
    return found[0]
