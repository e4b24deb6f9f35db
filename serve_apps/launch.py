"""Bring the application up on a connected Ray and take it down again."""

from __future__ import annotations

import ipaddress
import urllib.error
import urllib.request
from typing import Any

from largeforge_ray.errors import ConfigError, StageError, StoreError
from serve_apps.forge import ForgeArgs, build_app

APP = "largeforge"


def newest_router(store_url: str) -> str:
    """The key of the router artifact made last. Raises ``StoreError`` if there is none."""
    from largeforge_ray.store import open_store

    store = open_store(store_url)
    routers = sorted((a for a in store.artifacts() if a.kind == "router"), key=lambda a: a.created)
    if not routers:
        raise StoreError(f"store {store.url} holds no router; run a manifest with a promote stage first")
    return routers[-1].key


def start(args: ForgeArgs, *, host: str = "127.0.0.1", port: int = 8000) -> str:
    """Deploy, wait until every engine answers, and return the base URL.

    Raises:
        ConfigError: others could reach ``host``, and ``args`` ask for no keys.
        StageError: a deployment does not start, or the cluster's Serve listens somewhere else.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    require_keys(host, args.keys)
    app = build_app(args)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        serve.run(app, name=APP, route_prefix="/")
    except (RayServeException, RuntimeError) as error:
        raise StageError(f"the application did not start: {_reason(error)}") from error
    # Who listens everywhere also listens here.
    url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30):
            return url
    except (urllib.error.URLError, OSError) as error:
        raise StageError(
            f"the application runs but does not answer on {url}: {error}; Serve was started on this cluster "
            "before, on another address: use that one, or `serve shutdown` first"
        ) from None


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


def _reason(error: Exception) -> str:
    """The deployment's own message if Serve has one: the exception's text only points to the logs."""
    from ray import serve

    deployments: Any = getattr(serve.status().applications.get(APP), "deployments", {})
    messages = [d.message for d in deployments.values() if d.message]
    return (messages[0] if messages else str(error)).strip().splitlines()[-1]


def stop(*, keep_serve: bool) -> None:
    """Remove the application, and Serve itself if nothing else runs on it.

    ``keep_serve`` is for a cluster that ends anyway: Ray reports a controller that shuts itself down as lost.
    """
    from ray import serve

    if APP in serve.status().applications:
        serve.delete(APP)
    if not keep_serve and not serve.status().applications:
        serve.shutdown()
