"""P14: what stands between a client and an expert, ours beside the default way of Ray Serve, with an echo.

python -m benchmarks.echo_ratios [--pairs 5]

Both are a router deployment in front of an expert deployment that sends 64 small events; no model runs.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from benchmarks._http import free_port
from benchmarks._pairs import record, refuse_busy
from largeforge_ray.promote.views import ReplicaReport
from largeforge_ray.routing.experts import parse_router
from serve_apps.openai_errors import ReplyHead

MODEL, TOKEN, VERSION = "b" * 64, "echo", f"echo@{'b' * 8}"
EVENT, EVENTS = b'data: {"choices": [{"delta": {"content": "echo"}}]}\n\n', 64
WHOLE = b'{"choices": [{"message": {"content": "echo"}}]}'
BODY = {"model": "echo", "messages": [{"role": "user", "content": "echo"}]}
AT_ONCE = 16
TABLE = {
    "policy": {"kind": "keyword", "fallback": "echo"},
    "experts": [{"name": "echo", "state": "live", "model_key": MODEL, "engine": {"max_model_len": 512}}],
}


class Echo:
    """What a replica needs of an engine."""

    served, healthy, running = (VERSION,), True, 0

    async def answer(
        self, path: str, payload: Mapping[str, Any], said: str = ""
    ) -> AsyncIterator[ReplyHead | bytes]:
        if not payload.get("stream"):
            yield ReplyHead(200)
            yield WHOLE
            return
        yield ReplyHead(200, "text/event-stream; charset=utf-8")
        for _ in range(EVENTS):
            yield EVENT


def our_app(port: int) -> Any:
    from ray import serve

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
    class OurExpert:
        def __init__(self) -> None:
            from serve_apps.door import Door, listen
            from serve_apps.loop import LoopThread
            from serve_apps.replica import ReplicaApp

            self._loop, socket = LoopThread("echo"), listen("127.0.0.1", 0)
            self._address = f"127.0.0.1:{socket.getsockname()[1]}"

            async def begin() -> Any:
                return Door(ReplicaApp(Echo(), TOKEN, 64), socket)

            self._door = self._loop.run(begin())

        async def report(self) -> ReplicaReport:
            return ReplicaReport("r", MODEL, self._address, 1, token=TOKEN, served=(VERSION,))

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.1})
    class OurRouter:
        def __init__(self, expert: Any) -> None:
            from serve_apps.loop import LoopThread

            self._loop = LoopThread("router")
            self._loop.run(self._start(expert))

        async def _start(self, expert: Any) -> None:
            import aiohttp

            from serve_apps.door import Door, listen
            from serve_apps.fleet import Fleet
            from serve_apps.meters import RayMeters
            from serve_apps.ports import Limits
            from serve_apps.router import Front

            fleet = Fleet(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)), slots=64)
            fleet.update([await expert.report.remote()], keep=False)
            front = Front(parse_router(TABLE), {MODEL: fleet}, Limits(100_000, 512, 60.0), meters=RayMeters())
            self._door = Door(front, listen("127.0.0.1", port))

    return OurRouter.bind(OurExpert.bind())


def usual_app() -> Any:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse

    @serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})
    class UsualExpert:
        async def whole(self, payload: dict[str, Any]) -> bytes:
            return WHOLE

        async def events(self, payload: dict[str, Any]) -> AsyncIterator[bytes]:
            for _ in range(EVENTS):
                yield EVENT

    @serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})
    class UsualRouter:
        def __init__(self, expert: Any) -> None:
            self._expert = expert

        async def __call__(self, request: Request) -> Response:
            payload = await request.json()
            if not payload.get("stream"):
                return Response(await self._expert.whole.remote(payload), media_type="application/json")
            parts = self._expert.options(stream=True).events.remote(payload)
            return StreamingResponse(parts, media_type="text/event-stream")

    return UsualRouter.bind(UsualExpert.bind())


async def rate(url: str, seconds: float, *, stream: bool) -> tuple[float, bytes]:
    """Requests a second with ``AT_ONCE`` of them under way, and one reply's bytes."""
    import aiohttp

    replies: list[bytes] = []
    until = time.perf_counter() + seconds

    async def work(client: Any) -> None:
        while time.perf_counter() < until:
            async with client.post(url, json=BODY | {"stream": stream}) as reply:
                replies.append(await reply.read())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(AT_ONCE)))
        return len(replies) / (time.perf_counter() - began), replies[-1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.echo_ratios", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    refuse_busy()
    from actors import ray_session

    with ray_session(print) as session:
        session.connect()
        from ray import serve

        ours, usual = free_port(), free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": usual})
        serve.run(our_app(ours), name="ours", route_prefix=None)
        serve.run(usual_app(), name="usual", route_prefix="/")
        for stream, goal in ((False, ">= 3"), (True, ">= 5")):
            compare(ours, usual, options.pairs, stream=stream, goal=goal)
        serve.shutdown()


def compare(ours: int, usual: int, count: int, *, stream: bool, goal: str) -> None:
    def of(port: int) -> tuple[float, bytes]:
        return asyncio.run(rate(f"http://127.0.0.1:{port}/v1/chat/completions", 4.0, stream=stream))

    equal = (reply := of(ours)[1]) == of(usual)[1]
    if not equal:
        raise SystemExit(f"the replies differ, so their rates mean nothing; ours is {reply[:200]!r}")
    pairs = [[of(ours)[0], of(usual)[0]] for _ in range(count)]
    kind = f"streams of {EVENTS} events" if stream else "whole replies"
    record(
        f"P14-{'stream' if stream else 'unary'}",
        f"echo through router and expert, {kind} a second, ours / default Serve, {AT_ONCE} at once",
        pairs,
        equal=equal,
        goal=goal,
        command=f"python -m benchmarks.echo_ratios --pairs {count}",
    )


if __name__ == "__main__":
    main()
