"""Bring the application up on a connected Ray and take it down again."""

from __future__ import annotations

import logging
import time
import urllib.error
import urllib.request
from typing import Any

from largeforge_ray.errors import StageError, StoreError
from serve_apps.forge import ForgeArgs, build_app

APP = "largeforge"

logger = logging.getLogger(__name__)


def newest_router(store_url: str) -> str:
    """The key of the router artifact that was promoted last, or without any of the one made last.

    A router stage makes one too, but no gate has let its experts through. Raises ``StoreError`` if there
    is none.
    """
    from largeforge_ray.store import open_store

    store = open_store(store_url)
    routers = sorted((a for a in store.artifacts() if a.kind == "router"), key=lambda a: a.created)
    if not routers:
        raise StoreError(f"store {store.url} holds no router; run a manifest with a promote stage first")
    promoted = [router for router in routers if router.config.get("kind") == "promote"]
    return (promoted or routers)[-1].key


def start(args: ForgeArgs) -> str:
    """Deploy on ``args.host`` and ``args.port``, wait until every engine answers, and return the base URL.

    An expert whose engine does not start stops neither the others nor the application; the log names it.

    Raises:
        ConfigError: others could reach ``host``, and ``args`` ask for no keys.
        StageError: no engine starts.
    """
    from ray import serve
    from ray.serve.exceptions import RayServeException

    app = build_app(args)
    try:
        serve.start(proxy_location="Disabled")
        serve.run(app, name=APP, route_prefix="/")
    except (RayServeException, RuntimeError) as error:
        if not _answers(_url(args)):
            raise StageError(f"the application did not start: {_reason(error)}") from error
        logger.error("not all experts are served: %s", _reason(error))
    if not _answers(_url(args)):
        raise StageError(
            f"the application runs but does not answer on {_url(args)}; its log names the reason"
        )
    return _url(args)


def _url(args: ForgeArgs) -> str:
    # Who listens everywhere also listens here.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(args.host, args.host)
    return f"http://{host}:{args.port}"


def _answers(url: str) -> bool:
    """Whether some expert can be asked; routers learn of engines within a second."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    return False


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
        try:
            serve.delete(APP)
        except TimeoutError:  # a replica that waits for room is not told to leave; it goes when Serve does
            logger.warning("an engine that had not started yet was left to Ray Serve to end")
    if not keep_serve and not serve.status().applications:
        serve.shutdown()
