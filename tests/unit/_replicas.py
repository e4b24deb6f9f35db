"""Replicas whose engines play a script, on real ports, and the fleet that asks them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from largeforge_ray.promote.views import ReplicaReport
from largeforge_ray.routing.experts import EngineOptions, Expert
from serve_apps.door import Door, listen
from serve_apps.fleet import Fleet
from serve_apps.openai_errors import ReplyHead
from serve_apps.ports import Ask
from serve_apps.replica import ReplicaApp
from tests.unit._front import CHAT, HELLO, ScriptedEngine
from tests.unit.test_routing import ADAPTER, MODEL

BASE = Expert("base", "live", MODEL, EngineOptions(512))
TUNED = Expert("tuned", "live", MODEL, EngineOptions(512, 8), adapter_key=ADAPTER)
TOKEN = "a token of this replica's own"


class ScriptedModel:
    """What ``ReplicaApp`` needs of an engine; plays parts as ``ScriptedEngine`` does."""

    def __init__(self, *script: Any, served: tuple[str, ...] = (BASE.version,)) -> None:
        self._engine = ScriptedEngine(*script)
        self.served, self.healthy = served, True
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.said: list[str] = []

    @property
    def running(self) -> int:
        return self._engine.open

    async def answer(
        self, path: str, payload: Mapping[str, Any], said: str = ""
    ) -> AsyncIterator[ReplyHead | bytes]:
        self.asked.append((path, dict(payload)))
        self.said.append(said)
        ask = Ask(path, BASE, json.dumps(payload).encode())
        inner = self._engine.answer(ask)
        try:
            async for part in inner:
                yield part
        finally:
            await inner.aclose()


class Running:
    """A replica on a port of its own."""

    def __init__(self, name: str, model: ScriptedModel, limit: int = 8) -> None:
        self.name, self.model, self.sequence = name, model, 0
        self.app = ReplicaApp(model, TOKEN, limit)
        self.socket = listen("127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.door = Door(self.app, self.socket)

    def report(self, **more: Any) -> ReplicaReport:
        self.sequence += 1
        facts = {"token": TOKEN, "served": self.model.served} | more
        return ReplicaReport(self.name, MODEL, self.address, self.sequence, **facts)

    async def close(self) -> None:
        await self.door.close(0)


@asynccontextmanager
async def fleet_of(
    *models: ScriptedModel, wake: Any = None, slots: int = 4
) -> AsyncIterator[tuple[Fleet, list[Running]]]:
    """A fleet that has heard of a replica for each model."""
    replicas = [Running(f"r{i}", model) for i, model in enumerate(models)]
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=1.0)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        fleet = Fleet(client, slots=slots, wake=wake)
        fleet.update([replica.report() for replica in replicas], keep=False)
        try:
            yield fleet, replicas
        finally:
            for replica in replicas:
                await replica.close()


def asking(expert: Expert = BASE, **more: Any) -> Ask:
    return Ask(CHAT, expert, json.dumps({"model": "auto", **HELLO, **more}).encode())


async def parts(fleet: Fleet, ask: Ask | None = None) -> list[ReplyHead | bytes]:
    return [part async for part in fleet.answer(ask or asking())]


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
