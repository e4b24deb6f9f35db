"""The application: router deployments in front of an engine deployment for each base model.

serve run serve_apps.forge:app store=./forge router=live
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from largeforge_ray.config.speculation import Speculation
from largeforge_ray.errors import ConfigError, ForgeError
from largeforge_ray.keyfile import hash_of, read_keys, read_token
from largeforge_ray.models.hardware import gpus_each
from largeforge_ray.observe.logs import dress_handlers
from largeforge_ray.promote.views import RouterReport, View
from largeforge_ray.routing import Expert, Policies, Router
from largeforge_ray.routing.experts import ModelGroup, model_groups, parse_router
from largeforge_ray.store import Store
from serve_apps.admin import Admin
from serve_apps.door import Door, listen, watched_socket
from serve_apps.fleet import Fleet
from serve_apps.keys import ByAddress, KeyRing, require_keys
from serve_apps.loop import LoopThread
from serve_apps.meters import RayMeters
from serve_apps.placing import Placing, placings
from serve_apps.ports import Limits
from serve_apps.registry import RegistryClient
from serve_apps.replica import ExpertEngine
from serve_apps.router import Front
from serve_apps.scaling import by_running

logger = logging.getLogger("ray.serve")


def yaml_of(value: Any) -> Any:
    """What a command line gives is text."""
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {str(error).splitlines()[0]}") from None


def _from_text(value: Any) -> Any:
    """YAML of the fields, or a kind whose defaults will do."""
    parsed = yaml_of(value)
    return {"kind": parsed} if isinstance(parsed, str) else parsed


class ForgeArgs(BaseModel):
    """What to serve and within which limits. Values may come as text, as `serve run` passes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str = "./forge"
    router: str = Field("live", description="Key or name of a router artifact.")
    host: str = Field("127.0.0.1", description="Address of the routers' own port.")
    port: int | None = Field(
        None, ge=1, le=65535, description="The routers' own port, the fast way in; None leaves Serve's proxy."
    )
    engine_host: str = Field(
        "127.0.0.1", description="Where engines listen for routers; on several nodes 0.0.0.0."
    )
    routers: int = Field(1, ge=1, description="Router processes; they share the port.")
    router_cpus: float = Field(
        0.0, ge=0, description="CPUs set aside for a router; more than 0 keeps it off a head without any."
    )
    min_replicas: int = Field(1, ge=0, description="0: an idle engine is stopped, and started by a request.")
    max_replicas: int = Field(1, ge=1)
    upscale_delay_s: float = Field(5.0, ge=0)
    downscale_delay_s: float = Field(120.0, ge=0)
    keys: str | None = Field(
        None, description="File of API keys, from `largeforge keys`; None asks for none."
    )
    admin_token: str | None = Field(None, description="File of the admin API's token; None leaves it closed.")
    speculation: Annotated[Speculation | None, BeforeValidator(_from_text)] = Field(
        None,
        description="Who drafts tokens in every engine, whatever the router says: a kind, or YAML.",
    )
    cascade_confidence: float = Field(
        0.5, ge=0, le=1, description="A less sure answer of a cascade is asked for again, of a dearer expert."
    )
    engines: Annotated[dict[str, Placing], BeforeValidator(yaml_of)] = Field(
        {}, description="By expert, what its engine asks of the cluster; or YAML of that."
    )
    max_num_seqs: int = Field(16, ge=1, description="Requests an engine works on at once.")
    max_tokens: int = Field(1024, ge=1, description="The longest answer a request may ask for.")
    max_body_bytes: int = Field(1_000_000, ge=1)
    request_timeout_s: float = Field(300.0, gt=0)
    accept_timeout_s: float = Field(
        5.0, gt=0, description="A replica that takes no connection so long is passed over."
    )


@serve.deployment(max_ongoing_requests=1024, health_check_period_s=2, health_check_timeout_s=10)
class RouterDeployment:
    """The ingress: ``Front`` on a loop of its own, behind its own port and behind Serve's proxy."""

    def __init__(
        self, router: Router, key: str, handles: dict[str, Any], engines: dict[str, Placing], args: ForgeArgs
    ) -> None:
        """``key`` is the router artifact's, whose files the policies read; ``handles`` and ``engines`` are by
        model."""
        dress_handlers("ray.serve")
        context = serve.get_replica_context()
        self._name, self._args = context.replica_id.unique_id, args
        self._registry = RegistryClient(context.app_name, args.store, key)
        self._loop = LoopThread("router")
        self._loop.run(self._start(router, handles, engines))

    async def _start(self, router: Router, handles: dict[str, Any], engines: dict[str, Placing]) -> None:
        import aiohttp

        args, self._policy = self._args, router.policy
        client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, socket_factory=watched_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=args.accept_timeout_s),
            auto_decompress=False,
        )
        self._fleets = {
            key: Fleet(
                client,
                slots=engines[key].max_num_seqs,
                wake=None if engines[key].min_replicas else handle.ready.remote,
            )
            for key, handle in handles.items()
        }
        self._front = Front(
            router,
            self._fleets,
            Limits(args.max_body_bytes, args.max_tokens, args.request_timeout_s),
            keys=KeyRing(read_keys(Path(args.keys)), time.monotonic) if args.keys else None,
            meters=RayMeters(),
            cascade_confidence=args.cascade_confidence,
            policies=Policies(_files(args.store, self._registry.router)),
            admin=Admin(self._registry, hash_of(read_token(Path(args.admin_token))))
            if args.admin_token
            else None,
        )
        self._app = self._front if args.keys else ByAddress(self._front)
        known = None
        while known is None:  # the first request finds the replicas that are there
            known = await self._step(known)
        self._syncing = asyncio.create_task(self._keep_in_step(known))
        self._door = Door(self._app, listen(args.host, args.port)) if args.port else None

    async def _keep_in_step(self, known: int | None) -> None:
        while True:
            known = await self._step(known)

    async def _step(self, known: int | None) -> int | None:
        """Report, and learn what is news to who knows change ``known``. The newest change known then."""
        view = await self._registry.sync(RouterReport(self._name, self._front.trials.trials), known)
        if view is None:
            await asyncio.sleep(0.5)  # the registry is being restarted; what is known still holds
            return known
        self._follow(view)
        return view.number

    def _follow(self, view: View) -> None:
        for key, fleet in self._fleets.items():
            fleet.update((r for r in view.replicas if r.model_key == key), keep=view.young)
        if view.entries is not None:
            experts = tuple(entry.expert for entry in view.entries)
            reasons = {entry.expert.version: entry.reason for entry in view.entries}
            self._front.update(Router(self._policy, experts), reasons)
        self._front.tell({key[:8]: fleet.replicas for key, fleet in self._fleets.items()})

    async def __call__(self, request: Request) -> Response:
        return _Elsewhere(self._app, self._loop)

    async def check_health(self) -> None:
        """Serve calls this and replaces the replica when it raises."""
        await self._loop.call(asyncio.sleep(0))

    async def __del__(self) -> None:
        if getattr(self, "_door", None) is not None:
            await self._loop.call(self._door.close(self._args.request_timeout_s))
        self._loop.close()


class _Elsewhere(Response):
    """A reply that is made on another loop: what comes through Serve's proxy passes from loop to loop."""

    def __init__(self, app: Any, loop: LoopThread) -> None:
        super().__init__()
        self._app, self._there = app, loop

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        here = asyncio.get_running_loop()

        async def receive_here() -> Any:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(receive(), here))

        async def send_here(message: Any) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(send(message), here))

        await self._there.call(self._app(scope, receive_here, send_here))


def _files(store: str, key: str) -> Path:
    from largeforge_ray.store import open_store

    opened = open_store(store)
    return opened.fetch(opened.get(key))


def build_app(args: ForgeArgs) -> serve.Application:
    """Read the router artifact and bind its deployments.

    Raises ``StoreError`` if the artifact is not there and ``ConfigError`` if its table, the keys or the admin
    token are wrong, or others could reach the routers' port and no keys are asked for.
    """
    from largeforge_ray.store import open_store

    if args.port:
        require_keys(args.host, args.keys)
    if args.keys:
        read_keys(Path(args.keys))
    if args.admin_token:
        read_token(Path(args.admin_token))

    store = open_store(args.store)
    artifact = store.get(args.router)
    if artifact.kind != "router":
        raise ConfigError(
            f"artifact {artifact.key[:16]} ('{args.router}') is of kind {artifact.kind}; name a router, "
            "which a promote or router stage makes"
        )
    table = (store.fetch(artifact) / "router.json").read_bytes()
    router = parse_router(table, where=f"router {artifact.key[:16]}")
    args = args.model_copy(update={"store": store.url})
    if args.speculation is not None:
        router = _speculating(router, args.speculation.model_dump(mode="json"))
    engines = _placings(router, store, args)
    handles = {
        g.model_key: _engine(artifact.key, g, engines[g.model_key], args) for g in model_groups(router)
    }
    deployment = RouterDeployment.options(
        num_replicas=args.routers,
        graceful_shutdown_timeout_s=args.request_timeout_s,
        ray_actor_options={"num_cpus": args.router_cpus},
    )
    return deployment.bind(router, artifact.key, handles, engines, args)


def _placings(router: Router, store: Store, args: ForgeArgs) -> dict[str, Placing]:
    """By model. Raises ``ConfigError`` for an engine that could not be so."""
    usual = Placing(
        min_replicas=args.min_replicas, max_replicas=args.max_replicas, max_num_seqs=args.max_num_seqs
    )
    made = placings(model_groups(router), args.engines, usual)
    for group in model_groups(router):
        placing = made[group.model_key]
        if placing.workers > 1 or placing.across_nodes:
            config = json.loads(store.read_bytes(f"{store.get(group.model_key).data}/config.json"))
            name = f"the engine of {group.experts[0].name}"
            placing.check(config, group.backend, gpus_each(), name)
            _say_if_waiting(placing, name)
    return made


def _say_if_waiting(placing: Placing, name: str) -> None:
    """An autoscaler may bring a larger node, so that it is no error."""
    import ray

    device = "GPU" if gpus_each() else "CPU"
    nodes = ray.nodes() if ray.is_initialized() else []
    most = max((node["Resources"].get(device, 0) for node in nodes if node["Alive"]), default=placing.workers)
    if placing.workers > most and not placing.across_nodes:
        said = "%s waits for a node with %d %ss: the largest has %g"
        # Not Serve's logger: who starts the application reads this, on whose side that one is kept quiet.
        logging.getLogger(__name__).warning(said, name, placing.workers, device, most)


def _speculating(router: Router, speculation: dict[str, Any]) -> Router:
    def with_it(expert: Expert) -> Expert:
        if expert.embeds:
            return expert
        return replace(expert, engine=replace(expert.engine, speculation=speculation))

    return replace(router, experts=tuple(with_it(expert) for expert in router.experts))


def parse_args(*settings: str, **named: Any) -> ForgeArgs:
    """Arguments by name, and as ``NAME=VALUE``. Raises ``ConfigError`` for a wrong one."""
    given = dict(setting.partition("=")[::2] for setting in settings)
    try:
        return ForgeArgs(**named | given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(_fault(first)) from None


def _fault(error: Mapping[str, Any]) -> str:
    name = str(error["loc"][0])
    place = ".".join(str(part) for part in error["loc"])
    fields = Placing.model_fields if name == "engines" else ForgeArgs.model_fields
    if error["type"] == "extra_forbidden" and (place == name or name == "engines"):
        [*near] = get_close_matches(str(error["loc"][-1]), fields, n=1)
        meant = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(fields)}"
        return f"argument '{place}' does not exist; {meant}"
    said = error["msg"].removeprefix("Value error, ")
    return f"{place} {str(error['input'])[:60]!r}: {said}; see docs/serving.md for its values"


def app(args: dict[str, Any]) -> serve.Application:
    """For ``serve run`` and ``serve deploy``, which call it with the arguments they are given.

    Raises what the command line of Ray Serve shows as one line, not as a fault of its own.
    """
    from click import ClickException

    try:
        return build_app(parse_args(**args))
    except ForgeError as error:
        raise ClickException(str(error)) from None


def _engine(router: str, group: ModelGroup, placing: Placing, args: ForgeArgs) -> serve.Application:
    deployment = serve.deployment(
        ExpertEngine,
        name=f"engine-{group.model_key[:8]}",
        autoscaling_config={
            "min_replicas": placing.min_replicas,
            "max_replicas": max(placing.min_replicas, placing.max_replicas),
            "initial_replicas": max(placing.min_replicas, 1),
            "target_ongoing_requests": placing.max_num_seqs,
            "upscale_delay_s": args.upscale_delay_s,
            "downscale_delay_s": args.downscale_delay_s,
            "metrics_interval_s": 1.0,
            "look_back_period_s": 4.0,
            "policy": {"policy_function": by_running},
        },
        health_check_period_s=2,
        health_check_timeout_s=10,
        # Answers under way end first, however long they may take.
        graceful_shutdown_timeout_s=args.request_timeout_s + 10,
        **placing.deployment(gpus_each()),
    )
    return deployment.bind(
        args.store,
        group,
        placing,
        router=router,
        host=args.engine_host,
        max_tokens=min(args.max_tokens, group.max_model_len),
    )
