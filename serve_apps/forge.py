"""The application: one router deployment in front of an engine deployment for each base model.

serve run serve_apps.forge:build_app store=./forge router=live
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from largeforge_ray.keyfile import read_keys
from largeforge_ray.routing import Router
from largeforge_ray.routing.experts import ModelGroup, model_groups, parse_router
from serve_apps.expert import EngineClient, ExpertEngine
from serve_apps.keys import KeyRing
from serve_apps.meters import RayMeters
from serve_apps.router import Front, Limits


class ForgeArgs(BaseModel):
    """What to serve and within which limits. Values may come as text, as `serve run` passes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = "./forge"
    router: str = Field("live", description="Key or name of a router artifact.")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    keys: str | None = Field(
        None, description="File of API keys, from `largeforge keys`; None asks for none."
    )
    max_num_seqs: int = Field(16, ge=1, description="Requests an engine works on at once.")
    max_tokens: int = Field(1024, ge=1, description="The longest answer a request may ask for.")
    max_body_bytes: int = Field(1_000_000, ge=1)
    request_timeout_s: float = Field(300.0, gt=0)
    accept_timeout_s: float = Field(5.0, gt=0, description="Without an engine's sign for so long it is down.")


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0.1})
class RouterDeployment:
    """The ingress: ``Front`` around the handles of the engines."""

    def __init__(self, router: Router, handles: dict[str, Any], args: ForgeArgs) -> None:
        engines = {
            key: EngineClient(h, accept_s=args.accept_timeout_s, slots=args.max_replicas * args.max_num_seqs)
            for key, h in handles.items()
        }
        limits = Limits(args.max_body_bytes, args.max_tokens, args.request_timeout_s)
        keys = KeyRing(read_keys(Path(args.keys)), time.monotonic) if args.keys else None
        self._front = Front(router, engines, limits, keys=keys, meters=RayMeters())

    async def __call__(self, request: Request) -> Response:
        return await self._front.handle(request)


def build_app(args: ForgeArgs) -> serve.Application:
    """Read the router artifact and bind its deployments.

    Raises ``StoreError`` if the artifact is not there and ``ConfigError`` if its table or the keys are wrong.
    """
    from largeforge_ray.store import open_store

    if args.keys:
        read_keys(Path(args.keys))

    store = open_store(args.store)
    artifact = store.get(args.router)
    table = (store.fetch(artifact) / "router.json").read_bytes()
    router = parse_router(table, where=f"router {artifact.key[:16]}")
    handles = {group.model_key: _engine(store.url, group, args) for group in model_groups(router)}
    return RouterDeployment.bind(router, handles, args)


def _engine(store: str, group: ModelGroup, args: ForgeArgs) -> serve.Application:
    from largeforge_ray.models.hardware import detect

    deployment = serve.deployment(
        ExpertEngine,
        name=f"engine-{group.model_key[:8]}",
        autoscaling_config={
            "min_replicas": args.min_replicas,
            "max_replicas": max(args.min_replicas, args.max_replicas),
            "target_ongoing_requests": args.max_num_seqs,
        },
        # The engine refuses by itself what it cannot hold, with a reason; Serve's own queue only smooths.
        max_ongoing_requests=8 * args.max_num_seqs,
        max_queued_requests=8 * args.max_num_seqs,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=20,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if detect().gpus else 0},
    )
    return deployment.bind(
        store, group, max_num_seqs=args.max_num_seqs, max_tokens=min(args.max_tokens, group.max_model_len)
    )
