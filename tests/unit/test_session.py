"""The connection to Ray, as far as it can be told without one."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from actors import ray_session
from largeforge_ray.errors import ResourceError


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with ray_session(print) as session, pytest.raises(ResourceError, match="start it, correct the address"):
        session.connect()
    assert time.monotonic() - started < 8
    assert not session.connected


@pytest.mark.parametrize("where", ["file", "variable", "nowhere", "refused"])
def test_a_token_that_is_there_is_sent_to_the_cluster_that_is_joined(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile goes with the test
        monkeypatch.delenv(name)
    if where == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 32)
    if where in ("file", "refused"):
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a" * 32)
    if where == "refused":
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with ray_session(print):
        found = os.environ.get("RAY_AUTH_MODE")
    assert found == {"nowhere": None, "refused": "disabled"}.get(where, "token")
