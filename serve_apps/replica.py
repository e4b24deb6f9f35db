"""A replica: one engine for all experts that share a base model, behind a port of its own.

The router's requests come to that port and the replies' bytes go back on it; Ray Serve starts the replica,
looks after its health and scales it, and no token passes through it. The port takes requests with the
replica's own token only, which the registry tells routers, and of vLLM's HTTP application nothing is there.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any

from largeforge_ray.models.speculation import SpeculationNumbers
from largeforge_ray.observe import tracing
from largeforge_ray.observe.logs import dress_handlers
from largeforge_ray.promote.views import Entry, ReplicaReport
from largeforge_ray.routing.experts import Expert, ModelGroup
from serve_apps.door import Door, listen
from serve_apps.engine import Engine
from serve_apps.exchange import ClientLeft, Exchange
from serve_apps.fleet import NOT_TAKEN_HEADER, TOKEN_HEADER, VERSION_HEADER
from serve_apps.loop import LoopThread
from serve_apps.metered import Usage
from serve_apps.openai_errors import ApiError, ReplyHead, expert_unavailable, queue_full, unknown_path
from serve_apps.placing import Placing
from serve_apps.registry import RegistryClient
from serve_apps.replica_meters import ReplicaMeters
from serve_apps.resuming import RESUMED_HEADER, read_resumption

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
ADMITTED = 1.25
"""Requests a replica takes for each that it works on at once: who is admitted waits, and is answered, within
twice the time that an answer takes with all slots busy."""
LEAVING_S = 1.0
"""A replica that leaves still takes requests for so long: routers choose it until they have heard."""
MOST_BODY_BYTES = 64_000_000
"""The router has its own limit; this one only keeps a stranger's request from filling the memory."""

logger = logging.getLogger("ray.serve")


class ReplicaApp:
    """The ASGI application of a replica's port: the router's requests to the engine."""

    def __init__(self, engine: Engine, token: str, limit: int) -> None:
        self._engine, self._token, self._limit = engine, token.encode(), limit
        self.draining, self.under_way = False, 0

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive, send)
        try:
            with tracing.span("engine", exchange.headers):
                tracing.note(expert=exchange.header(VERSION_HEADER), running=self._engine.running)
                await self._answer(exchange)
        except ApiError as error:
            await exchange.reply(error.status, error.body(), error.headers)
        except ClientLeft:
            return

    async def _answer(self, exchange: Exchange) -> None:
        given = exchange.headers.get(TOKEN_HEADER.encode(), b"")
        if not hmac.compare_digest(given, self._token) or exchange.path not in ENDPOINTS:
            raise unknown_path(exchange.path, [])
        version = exchange.header(VERSION_HEADER)
        if self.draining or not self._engine.healthy or version not in self._engine.served:
            error = expert_unavailable(version.partition("@")[0])
            await exchange.reply(error.status, error.body(), {NOT_TAKEN_HEADER: "1", **error.headers})
            return
        resumed = bool(exchange.header(RESUMED_HEADER))
        # Not by the engine's count, which has probes, and no request whose prompt is still being read.
        # What another replica has admitted is not refused here.
        if self.under_way >= self._limit and not resumed:
            raise queue_full(self.under_way, self._limit)
        self.under_way += 1
        try:
            body, said = await exchange.body(MOST_BODY_BYTES), ""
            payload: dict[str, Any] = json.loads(body)
            if resumed:
                resumption = read_resumption(body)
                payload, said = resumption.payload, resumption.said
            with exchange.unless_left():
                await self._copy(exchange, payload | {"model": version}, said)
        finally:
            self.under_way -= 1

    async def _copy(self, exchange: Exchange, payload: dict[str, Any], said: str) -> None:
        async with aclosing(self._engine.answer(exchange.path, payload, said)) as parts:
            head = await anext(parts)
            assert isinstance(head, ReplyHead)
            retry = {} if head.retry_after_s is None else {"retry-after": str(head.retry_after_s)}
            if not head.content_type.startswith("text/event-stream"):
                body = b"".join([part async for part in parts])
                await exchange.reply(head.status, body, retry, head.content_type)
                return
            await exchange.start(head.status, head.content_type, retry)
            async for part in parts:
                await exchange.part(part)
            await exchange.end()


class ExpertEngine:
    """The deployment: starts the engine, keeps it in step with the registry, and tells how it is."""

    def __init__(
        self,
        store: str,
        group: ModelGroup,
        placing: Placing,
        *,
        router: str,
        host: str,
        max_tokens: int,
    ) -> None:
        from ray import serve

        dress_handlers("ray.serve")
        context = serve.get_replica_context()
        self._name, self._token = context.replica_id.unique_id, secrets.token_urlsafe(24)
        self._registry, self._group = RegistryClient(context.app_name, store, router), group
        self._loop = LoopThread("engine")
        self._refused: dict[str, str] = {}
        self._evidence: dict[str, Mapping[str, Any]] = {}
        self._sequence, self._in_step, self._leaving = 0, asyncio.Event(), False
        self._meters = ReplicaMeters(group)
        self._prices = {expert.name: expert.price for expert in group.experts}
        self._speculation: SpeculationNumbers | None = None
        self._loop.run(self._start(store, host, placing, max_tokens))

    async def _start(self, store: str, host: str, placing: Placing, max_tokens: int) -> None:
        from largeforge_ray.store import open_store
        from serve_apps.engine import start_engine

        group, self._store = self._group, open_store(store)
        socket = listen(host, 0)  # before the engine, so that a wrong address fails at once
        self._engine = start_engine(
            group.backend,
            self._store.fetch(self._store.get(group.model_key)),
            [e.version for e in group.experts if not e.adapter_key] or [group.model_key[:16]],
            max_model_len=group.max_model_len,
            max_lora_rank=group.max_lora_rank,
            placing=placing,
            max_tokens=max_tokens,
            ended=self._ended,
            embeds=group.embeds,
            **self._drafting(),
        )
        self._app = ReplicaApp(self._engine, self._token, math.ceil(ADMITTED * placing.max_num_seqs))
        self._address = f"{_reachable(host)}:{socket.getsockname()[1]}"
        self._door = Door(self._app, socket)
        self._syncing = asyncio.create_task(self._keep_in_step())
        await self._in_step.wait()

    def _drafting(self) -> dict[str, Any]:
        """The group's speculation, and where the model is that drafts."""
        from largeforge_ray.config.speculation import parse_speculation
        from largeforge_ray.models.speculation import draft_source

        if self._group.speculation is None:
            return {}
        speculation = parse_speculation(self._group.speculation)
        source = draft_source(speculation)
        drafts = self._store.fetch(self._store.get(source)) if source else None
        return {"speculation": speculation, "draft_dir": drafts}

    def _ended(self, usage: Usage) -> None:
        self._meters.ended(usage, self._prices)
        if usage.speculation is not None:
            self._speculation = (self._speculation or SpeculationNumbers()).after(usage.speculation)

    async def _keep_in_step(self) -> None:
        """Tell the registry how things are and learn what it lists. Loading goes on beside it: who says
        nothing for some seconds has gone."""
        known: int | None = None
        following: asyncio.Task[None] | None = None
        entries: Sequence[Entry] = ()
        while True:
            view = await self._registry.sync(self._report(), known)
            if view is None:
                await asyncio.sleep(0.2)
                continue
            known, entries = view.number, view.entries or entries
            self._prices = {entry.expert.name: entry.expert.price for entry in entries}
            if following is None or following.done():
                wanted = self._wanted(entries)
                if wanted.keys() == self._known:
                    self._in_step.set()
                else:
                    following = asyncio.create_task(self._follow(wanted))

    def _wanted(self, entries: Sequence[Entry]) -> dict[str, Expert]:
        """By version, the experts this engine is to have an adapter for."""
        experts = (entry.expert for entry in entries if entry.expert.state not in ("proposed", "failed"))
        return {e.version: e for e in experts if e.adapter_key and e.model_key == self._group.model_key}

    @property
    def _known(self) -> set[str]:
        return {*self._engine.adapters, *self._refused}

    async def _follow(self, wanted: Mapping[str, Expert]) -> None:
        """Load what is wanted and is not known, drop what is known and no longer wanted, and tell."""
        for version in wanted.keys() - self._known:
            await self._load(wanted[version])
        for version in self._known - wanted.keys():
            self._refused.pop(version, None)
            self._evidence.pop(version, None)
            await self._engine.unload_adapter(version)
        await self._registry.sync(self._report(), None)

    async def _load(self, expert: Expert) -> None:
        from largeforge_ray.errors import ForgeError
        from serve_apps.probing import probe

        try:
            artifact = self._store.get(str(expert.adapter_key))
            folder = await asyncio.to_thread(self._store.fetch, artifact)
            await self._engine.load_adapter(expert.version, folder)
            self._evidence[expert.version] = await probe(self._engine, expert.version, folder)
        except (ForgeError, OSError, ValueError, KeyError) as error:
            self._refused[expert.version] = str(error)
            await self._engine.unload_adapter(expert.version)
            logger.error("expert %s is not served here: %s", expert.version, error)

    def _report(self) -> ReplicaReport:
        self._sequence += 1
        return ReplicaReport(
            replica=self._name,
            model_key=self._group.model_key,
            address=self._address,
            sequence=self._sequence,
            token=self._token,
            up=self._engine.healthy and not self._leaving,
            running=self._engine.running,
            # An adapter is served once its probe has passed.
            served=tuple(
                n for n in self._engine.served if n not in self._engine.adapters or n in self._evidence
            ),
            refused=dict(self._refused),
            evidence=dict(self._evidence),
            speculation=_told(self._speculation),
        )

    async def check_health(self) -> None:
        """Serve calls this and replaces the replica when it raises, or three times does not come back."""
        await self._loop.call(self._engine.check_health())

    async def ready(self) -> None:
        """Answers as soon as there is a replica; asking for it makes Serve start a first one."""

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For the policy of this deployment; Serve sees none of the requests itself."""
        return {"running": float(self._engine.running)}

    async def __del__(self) -> None:
        # Serve awaits this within the deployment's graceful_shutdown_timeout_s.
        # A replica that failed in __init__ has no engine yet.
        if hasattr(self, "_door"):
            await self._loop.call(self._leave())
        self._loop.close()

    async def _leave(self) -> None:
        """Say so, take nothing new, end what is under way, and stop the engine."""
        self._syncing.cancel()
        self._leaving = True
        await self._registry.sync(self._report(), None)
        await asyncio.sleep(LEAVING_S)
        self._app.draining = True
        began = time.monotonic()
        # What was taken counts from its first byte to its last, not only while the engine is at it.
        while self._engine.healthy and self._app.under_way:
            await asyncio.sleep(0.05)
        logger.info("drained in %.1f s", time.monotonic() - began)
        await self._door.close(5)
        self._engine.shutdown()


def _told(numbers: SpeculationNumbers | None) -> dict[str, Any] | None:
    if numbers is None:
        return None
    rate, length = numbers.acceptance_rate, numbers.accepted_length
    return {
        "on": numbers.on,
        "acceptance": None if rate is None else round(rate, 4),
        "accepted_length": None if length is None else round(length, 3),
        "drafted": numbers.drafted,
        "accepted": numbers.accepted,
    }


def _reachable(host: str) -> str:
    """Where routers find who listens on ``host``: everywhere means at the node's own address."""
    if host != "0.0.0.0":
        return host
    import ray

    return str(ray.util.get_node_ip_address())
