"""`largeforge keys` and `largeforge experts` as typed: the files they keep, and what they ask a router."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from largeforge_ray.errors import StageError
from largeforge_ray.keyfile import hash_of, read_keys, read_token
from train_jobs import experts
from train_jobs.cli import cli

KEY = "f" * 64


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def test_a_key_is_printed_once_listed_with_its_limits_and_revoked(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.yaml")
    made = typed("keys", "--file", file, "new", "alice", "--requests-per-minute", "60", "--concurrency", "4")
    [key] = read_keys(Path(file))
    assert key.sha256 == hash_of(made.output.strip())
    typed("keys", "--file", file, "new", "bob")
    listed = typed("keys", "--file", file, "list").output.splitlines()
    assert [line.split(maxsplit=1) for line in listed] == [
        ["alice", "60 requests a minute, 4 at once"],
        ["bob", "no limits"],
    ]
    typed("keys", "--file", file, "revoke", "alice")
    assert [each.name for each in read_keys(Path(file))] == ["bob"]


def test_an_admin_token_is_written_and_not_printed(tmp_path: Path) -> None:
    file = tmp_path / "admin-token"
    said = typed("keys", "admin", str(file)).output
    assert f"largeforge serve --admin-token {file}" in said
    assert read_token(file) not in said


class AdminApi(BaseHTTPRequestHandler):
    """Of a router as much as the command asks: ``states`` are those of the expert, one for each look."""

    states: list[str]
    seen: list[tuple[str, str, str, Any]]

    def do_GET(self) -> None:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        card = {"name": "shop", "state": state, "artifact": KEY[:16], "up": True, "running": 0}
        self._reply({"data": [card | {"reason": f"because {state}"}]})

    def do_POST(self) -> None:
        self._note(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self._reply({"expert": {"name": "shop", "adapter_key": KEY}, "reason": "preflight passed"})

    def do_DELETE(self) -> None:
        self._note(None)
        self._reply({"reason": "removed by admin"})

    def _note(self, body: Any) -> None:
        self.seen.append((self.command, self.path, self.headers["authorization"], body))

    def _reply(self, value: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Tests print nothing."""


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[AdminApi], list[str]]]:
    """The API, and the command's words up to what is asked of it."""
    monkeypatch.setattr(experts, "POLL_S", 0.0)
    api = type("Api", (AdminApi,), {"states": ["live"], "seen": []})
    token = tmp_path / "admin-token"
    typed("keys", "admin", str(token))
    with ThreadingHTTPServer(("127.0.0.1", 0), api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield api, ["experts", "--url", f"http://127.0.0.1:{server.server_port}", "--token", str(token)]
        server.shutdown()


def test_an_expert_is_added_watched_until_it_is_live_and_removed(router: Any, tmp_path: Path) -> None:
    api, words = router
    api.states = ["loading", "shadow", "canary", "live"]
    added = typed(*words, "add", "shop-v2", "--name", "shop")
    assert added.output.splitlines() == [
        "shop: preflight passed, loading",
        *(f"shop: {state}, because {state}" for state in ("shadow", "canary", "live")),
    ]
    typed(*words, "remove", "shop")
    token = f"Bearer {read_token(tmp_path / 'admin-token')}"
    assert api.seen == [
        ("POST", "/admin/experts", token, {"adapter": "shop-v2", "name": "shop"}),
        ("DELETE", "/admin/experts/shop", token, None),
    ]


def test_an_expert_that_fails_ends_the_command_with_its_reason(router: Any) -> None:
    api, words = router
    api.states = ["loading", "failed"]
    failed = typed(*words, "add", "shop-v2")
    assert "shop: failed, because failed" in failed.stderr
    assert isinstance(failed.exception, StageError)


def test_experts_are_listed_with_state_and_reason(router: Any) -> None:
    _, words = router
    first, second = typed(*words, "list").output.splitlines()
    assert first.split() == ["shop", "live", KEY[:16], "up,", "0", "running"]
    assert second.strip() == "because live"
