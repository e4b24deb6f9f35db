"""API keys: their file, their limits, and what the front does with them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from largeforge_ray.errors import ConfigError
from largeforge_ray.keyfile import add_key, read_keys, revoke_key
from serve_apps import ForgeArgs, start
from serve_apps.keys import ByAddress, KeyRing
from serve_apps.openai_errors import ApiError, ReplyHead
from tests.unit._front import (
    CHAT,
    DONE,
    EVENTS,
    HELLO,
    STREAM,
    ScriptedEngine,
    Wire,
    app,
    completion,
    in_loop,
)

ASK = HELLO | {"model": "base"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def bearer(token: str) -> str:
    return f"Bearer {token}"


def refused(ring: KeyRing, authorization: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ring.enter(authorization)
    return caught.value


def test_a_file_holds_no_key_and_is_its_owner_s_alone(file: Path) -> None:
    token = add_key(file, "alice", 60, None)
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    (key,) = read_keys(file)
    assert (key.name, key.requests_per_minute, key.concurrency) == ("alice", 60, None)
    assert [f.name for f in file.parent.iterdir()] == ["keys.yaml"]


def test_a_key_that_was_revoked_is_unknown(file: Path) -> None:
    alice, bob = (add_key(file, name, None, None) for name in ("alice", "bob"))
    revoke_key(file, "alice")
    ring = KeyRing(read_keys(file), lambda: 0.0)
    assert ring.enter(bearer(bob)) == "bob"
    assert refused(ring, bearer(alice)).code == "invalid_api_key"


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (None, 0o600, "No such file"),
        ("[]", 0o640, "is open to others .mode 640.*chmod 600"),
        ("- {name: a, sha256: x}", 0o600, "sha256: String should match"),
        ("- {name: a/b, sha256: '" + "0" * 64 + "'}", 0o600, "name: String should match"),
        ("- {name: a, sha256: '" + "0" * 64 + "', rpm: 1}", 0o600, "rpm: Extra inputs"),
        ("- just text", 0o600, "no YAML list of keys"),
        ("{", 0o600, "no YAML list of keys"),
        (
            "- {name: a, sha256: '" + "0" * 64 + "'}\n- {name: a, sha256: '" + "1" * 64 + "'}",
            0o600,
            "'a' twice",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_fix(file: Path, text: str | None, mode: int, said: str) -> None:
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(ConfigError, match=said):
        read_keys(file)


def test_names_are_taken_once_and_limits_are_at_least_one(file: Path) -> None:
    add_key(file, "alice", None, None)
    with pytest.raises(ConfigError, match="has a key 'alice'; revoke it first"):
        add_key(file, "alice", None, None)
    with pytest.raises(ConfigError, match="concurrency: Input should be greater"):
        add_key(file, "bob", None, 0)
    with pytest.raises(ConfigError, match="has no key 'carol'; it has: alice"):
        revoke_key(file, "carol")


@pytest.mark.parametrize(
    "given", ["Bearer lf-wrong", "Bearer", "Bearer ", "Basic abc", "lf-x", "Bearer \udcff"]
)
def test_whoever_gives_no_known_key_is_a_401(file: Path, given: str) -> None:
    add_key(file, "alice", None, None)
    ring = KeyRing(read_keys(file), lambda: 0.0)
    assert refused(ring, given).status == 401
    assert refused(ring, "").code == "missing_api_key"


def test_a_key_s_limits_are_its_own(file: Path) -> None:
    now = 0.0
    alice, bob = add_key(file, "alice", 60, None), add_key(file, "bob", None, 1)
    ring = KeyRing(read_keys(file), lambda: now)
    ring.enter(bearer(alice))
    error = refused(ring, bearer(alice))
    assert (error.status, error.code, error.retry_after_s) == (429, "rate_limit_exceeded", 1)
    now = 1.0
    ring.enter(bearer(alice))
    ring.enter(bearer(bob))
    assert refused(ring, bearer(bob)).code == "concurrency_limit_exceeded"
    ring.leave("bob")
    assert ring.enter(bearer(bob)) == "bob"


def guarded(file: Path, *script: Any) -> tuple[Any, str]:
    token = add_key(file, "alice", None, 1)
    return app(ScriptedEngine(*script), keys=KeyRing(read_keys(file), lambda: 0.0)), token


def test_without_a_key_there_is_health_and_nothing_else(file: Path) -> None:
    front, token = guarded(file, ReplyHead(200), completion("hi"))
    client = TestClient(front)
    assert client.get("/health").status_code == 200
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/route"), ("POST", CHAT)):
        assert client.request(method, path, json=ASK).json()["error"]["type"] == "authentication_error"
    headers = {"authorization": bearer(token)}
    # More requests than may be under way at once: each one ends.
    replies = [client.post(CHAT, json=ASK, headers=headers).status_code for _ in range(3)]
    assert replies == [200, 200, 200]
    assert client.post(CHAT, json={}, headers=headers).status_code == 400
    assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("leaves", [False, True])
@in_loop
async def test_a_stream_counts_until_it_ends_or_its_client_leaves(leaves: bool, file: Path) -> None:
    going_on = asyncio.Event()
    front, token = guarded(file, STREAM, EVENTS[0], going_on, EVENTS[1], DONE)

    def wire() -> Wire:
        wire = Wire(ASK | {"stream": True})
        wire.scope["headers"] += [(b"authorization", bearer(token).encode())]
        return wire

    async def status() -> int:
        refused = wire()
        await refused.start(front)
        return int((await refused.received.get())["status"])

    first = wire()
    task = first.start(front)
    await first.received.get()
    assert await status() == 429
    if leaves:
        first.gone.set()
    else:
        going_on.set()
    await task
    del task
    going_on.set()
    assert await status() == 200


@pytest.mark.parametrize(
    ("host", "let_in"),
    [
        *((host, True) for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000", "192.0.2.7", "")),
        *(
            (host, False)
            for host in ("evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "[")
        ),
    ],
)
def test_without_keys_a_router_is_asked_by_address_alone(host: str, let_in: bool) -> None:
    http = TestClient(ByAddress(app(ScriptedEngine())))
    reply = http.get("/v1/models", headers={"host": host})
    assert reply.status_code == (200 if let_in else 421)
    if not let_in:
        assert reply.json()["error"]["code"] == "foreign_host"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.org"])
def test_nothing_listens_openly_without_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="no keys are asked for"):
        start(ForgeArgs(store="nowhere", host=host, port=8000))
