"""The connection to Ray, as far as it can be told without one."""

from __future__ import annotations

import socket
import time

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
