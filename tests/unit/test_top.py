"""`largeforge top` as typed, in a pipe and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from largeforge_ray.observe import EventLog
from largeforge_ray.store import open_store
from tests.contracts._tree import ROOT
from tests.unit.test_live import CARD

NOBODY = "http://127.0.0.1:9"
COMMAND = [sys.executable, "-c", "from train_jobs.cli import main; main()", "top", "--store", "forge"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}


class Router(BaseHTTPRequestHandler):
    """Answers ``GET /v1/experts``."""

    def do_GET(self) -> None:
        body = json.dumps({"data": [CARD]}).encode()
        self.send_response(200 if self.path == "/v1/experts" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Router) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "forge")
    store.write_bytes("runs/20250101-000000-aaaa/plan.json", b'{"stages": [{"name": "rows"}]}')
    with EventLog(store, "20250101-000000-aaaa") as log:
        log.emit("rows", "started")
        log.emit("rows", "progress", {"done": 3, "total": 12})
    return tmp_path


def test_once_prints_one_look_as_plain_text(home: Path, url: str) -> None:
    words = [*COMMAND, "--once", "--url", url, "--address", NOBODY]
    done = subprocess.run(words, cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[2][:5] == ["20250101-000000-aaaa", "running", "rows", "(0/1)", "3/12"]
    assert lines[5][:4] == ["orders", "live", "2", "5"]
    assert done.stdout.splitlines()[-2].startswith(f"WORKERS: no Ray cluster answers at {NOBODY}: Connection")


@pytest.mark.parametrize("leave", ["q", "Ctrl-C"])
def test_a_terminal_is_left_as_it_was(home: Path, leave: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    words = [*COMMAND, "--url", NOBODY, "--address", NOBODY, "--interval", "0.2"]
    watching = subprocess.Popen(
        words, cwd=home, env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    try:
        first = seen(ours, "WORKERS")
        assert "\x1b[?1049h" in first  # the other screen, on which nothing of the user's is overwritten
        assert termios.tcgetattr(theirs)[3] & termios.ICANON == 0
        seen(ours, "WORKERS")  # and looks again
        if leave == "q":
            os.write(ours, b"xq")
        else:
            watching.send_signal(signal.SIGINT)
        last = seen(ours, "\x1b[?1049l")
        assert watching.wait(20) == 0
        assert "Traceback" not in last
        assert termios.tcgetattr(theirs) == before
    finally:
        watching.kill()
        os.close(ours)
        os.close(theirs)


def seen(terminal: int, text: str) -> str:
    """What is shown until ``text`` is."""
    shown, until = "", time.monotonic() + 60
    while text not in shown:
        left = until - time.monotonic()
        assert left > 0, shown
        if select.select([terminal], [], [], left)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown
