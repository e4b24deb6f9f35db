"""Lets requests in by their API keys, and refuses to be open to all without."""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from largeforge_ray.errors import ConfigError
from largeforge_ray.keyfile import Key, hash_of
from largeforge_ray.models.rate import RateLimit
from serve_apps.exchange import Exchange
from serve_apps.openai_errors import foreign_host, invalid_key, no_key, too_many_at_once, too_often


class KeyRing:
    """Lets requests in. ``clock`` gives seconds and never goes back."""

    def __init__(self, keys: tuple[Key, ...], clock: Callable[[], float]) -> None:
        self._keys, self._clock = keys, clock
        self._rates = {key.name: RateLimit(key.requests_per_minute, None) for key in keys}
        self._open = dict.fromkeys(self._rates, 0)

    def enter(self, authorization: str, *, counted: bool = True) -> str:
        """The name of the key in an ``Authorization`` header, whose request is under way until ``leave``.

        One that is not ``counted`` takes nothing of what the key may send a minute.

        Raises:
            ApiError: 401 without a known key, 429 over one of its limits.
        """
        key = self._find(authorization)
        if key.concurrency is not None and self._open[key.name] >= key.concurrency:
            raise too_many_at_once(key.name, key.concurrency)
        if counted and (wait_s := self._rates[key.name].wait_s(self._clock(), 0)):
            raise too_often(key.name, key.requests_per_minute or 0, math.ceil(wait_s))
        self._open[key.name] += 1
        return key.name

    def leave(self, name: str) -> None:
        """A request that entered has ended."""
        self._open[name] -= 1

    def _find(self, authorization: str) -> Key:
        scheme, _, token = authorization.partition(" ")
        given = hash_of(token.strip()) if scheme.lower() == "bearer" else ""
        # Every entry is compared, in constant time: how long it takes tells nothing of any key.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, given)]
        if not found:
            raise invalid_key() if authorization else no_key()
        return found[0]


class ByAddress:
    """An application that is asked by an address, or as localhost. Any other name in ``Host`` may be a web
    page's own that was made to resolve here (DNS rebinding), and without keys the page would get in."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            exchange = Exchange(scope, receive, send)
            host = exchange.header("host")
            if not is_address(host):
                error = foreign_host(host)
                await exchange.reply(error.status, error.body(), error.headers)
                return
        await self._app(scope, receive, send)


def is_address(host: str) -> bool:
    """Of a ``Host`` header. None at all is no browser's."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("", "localhost") or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def require_keys(host: str, keys: str | None) -> None:
    """Raise ``ConfigError`` if other machines reach ``host`` and nobody has to show a key."""
    try:
        closed = ipaddress.ip_address(host).is_loopback
    except ValueError:
        closed = host == "localhost"
    if not closed and keys is None:
        raise ConfigError(
            f"host {host} is open to other machines and no keys are asked for; make some with "
            "`largeforge keys new NAME` and give their file as --keys, or listen on 127.0.0.1"
        )
