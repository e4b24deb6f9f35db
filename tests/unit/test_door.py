"""A port of ours: what a client may leave half done, and what a closing door still does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from serve_apps import door as module
from serve_apps import exchange
from serve_apps.door import READ_IN_UVICORN, Door, listen
from serve_apps.exchange import Exchange
from serve_apps.openai_errors import ApiError
from tests.unit._front import in_loop

GET = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    asked = Exchange(scope, receive, send)
    try:
        body = await asked.body(1000)
    except ApiError as error:
        await asked.reply(error.status, error.body())
        return
    await asked.reply(200, b"hello " + body, content_type="text/plain")


@asynccontextmanager
async def opened(app: Any = hello) -> AsyncIterator[tuple[Door, int]]:
    socket = listen("127.0.0.1", 0)
    door = Door(app, socket)
    yield door, socket.getsockname()[1]
    with contextlib.suppress(Exception):
        await door.close(0)


async def ends_within(port: int, sent: bytes, seconds: float) -> bytes:
    """What comes back until the other side closes, which it must do in time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), seconds)
    finally:
        writer.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_S", 0.3)
    monkeypatch.setattr(exchange, "BODY_S", 0.3)


def test_it_was_read_in_the_uvicorn_that_is_installed() -> None:
    assert uvicorn.__version__ == READ_IN_UVICORN


@in_loop
@pytest.mark.parametrize("sent", [b"", b"GE", GET[:-2]], ids=["nothing", "a method", "an unended head"])
async def test_a_client_that_does_not_end_its_head_is_let_go(sent: bytes) -> None:
    async with opened() as (_, port):
        assert await ends_within(port, sent, 2) == b""


@in_loop
async def test_a_head_without_end_is_cut_off() -> None:
    async with opened() as (_, port):
        endless = b"GET / HTTP/1.1\r\n" + b"x-more: " + b"y" * 200_000
        with contextlib.suppress(ConnectionResetError):  # what was not read is lost
            assert await ends_within(port, endless, 0.25) == b""


@in_loop
async def test_a_body_that_does_not_come_is_a_408() -> None:
    async with opened() as (_, port):
        reply = await ends_within(
            port, b"POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 9\r\n\r\nx", 2
        )
        assert reply.startswith(b"HTTP/1.1 408 ")


@in_loop
async def test_a_body_announced_too_large_is_a_413_before_it_is_read() -> None:
    async with opened() as (_, port):
        reply = await ends_within(
            port, b"POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 1001\r\n\r\n", 2
        )
        assert reply.startswith(b"HTTP/1.1 413 ")


@in_loop
@pytest.mark.parametrize("garbage", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00" * 50])
async def test_what_is_not_http_is_a_400_or_closed(garbage: bytes) -> None:
    async with opened() as (_, port):
        assert (await ends_within(port, garbage, 2))[:12] in (b"", b"HTTP/1.1 400")


@in_loop
async def test_a_connection_serves_several_requests_and_may_rest_between_them() -> None:
    async with opened() as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(GET)
            assert (await reader.readuntil(b"hello ")).startswith(b"HTTP/1.1 200 OK")
            await asyncio.sleep(0.4)  # longer than a head may take
        writer.close()


@in_loop
async def test_a_closing_door_lets_no_one_in_and_ends_what_is_under_way() -> None:
    gate = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await hello(scope, receive, send)

    async with opened(slow) as (door, port):
        asked = asyncio.create_task(ends_within(port, GET, 5))
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(door.close(5))
        await asyncio.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        gate.set()
        assert (await asked).endswith(b"hello ")
        await closing


@in_loop
async def test_two_doors_share_a_port() -> None:
    async with opened() as (_, port):
        pass
    doors = [Door(hello, listen("127.0.0.1", port)) for _ in range(2)]
    await asyncio.sleep(0.05)
    await doors[0].close(0)
    assert (await ends_within(port, GET.replace(b"host", b"connection: close\r\nhost"), 2)).endswith(
        b"hello "
    )
    await doors[1].close(0)
