"""Bring the application up on a connected Ray and take it down again."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

from largeforge_ray.errors import StageError, StoreError
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
        StageError: a deployment does not start, or the cluster's Serve listens somewhere else.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    app = build_app(args)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        serve.run(app, name=APP, route_prefix="/")
    except (RayServeException, RuntimeError) as error:
        raise StageError(f"the application did not start: {_reason(error)}") from error
    url = f"http://{host}:{port}"
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30):
            return url
    except (urllib.error.URLError, OSError) as error:
        raise StageError(
            f"the application runs but does not answer on {url}: {error}; Serve was started on this cluster "
            "before, on another address: use that one, or `serve shutdown` first"
        ) from None


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
