"""A port and the ASGI application behind it: uvicorn, with limits on what a client may leave half done.

uvicorn has no limit of its own on the time or the size of a request's head. Both are added to its protocol,
which was read in the version below; a test with a slow and one with an endless head fail when it moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

READ_IN_UVICORN = "0.54.0"
HEAD_S = 10.0
MOST_HEAD_BYTES = 65_536
KEEP_ALIVE_S = 75
"""Longer than the clients of our own keep a connection, so that none is closed as it is used."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that other processes of ours may share. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((host, port))
    sock.listen(2048)
    return sock


def watched_socket(address: tuple[Any, ...]) -> socket.socket:
    """For a client: of a machine that is gone without a word it hears within some ten seconds, instead of
    never."""
    family, kind, protocol, *_ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return sock


class Door:
    """Serves ``app`` on a socket in the running event loop, until ``close``."""

    def __init__(self, app: Any, sock: socket.socket) -> None:
        self._server = _server(app)
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))

    async def closed(self) -> None:
        """Return when it is closed."""
        await self._task

    async def close(self, grace_s: float) -> None:
        """Take no new connections, and wait for replies under way, at most so many seconds."""
        self._server.config.timeout_graceful_shutdown = int(grace_s)
        self._server.should_exit = True
        await self._task


def _server(app: Any) -> Any:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        """A connection whose requests' heads come whole within ``HEAD_S``, and are not endless."""

        _late: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._late = self.loop.call_later(HEAD_S, transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes = 0
            self._in_time()
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._head_bytes += len(data)
            if self._late is not None and self._head_bytes > MOST_HEAD_BYTES:
                self.transport.close()

        def on_headers_complete(self) -> None:
            self._in_time()
            super().on_headers_complete()

        def _in_time(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    class Server(uvicorn.Server):
        def capture_signals(self) -> Any:
            return contextlib.nullcontext()  # whoever opened the door decides when it closes

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        proxy_headers=False,
    )
    return Server(config)
