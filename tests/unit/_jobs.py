"""A cluster's job server that plays a script, for Ray's own client: version, packages, jobs, logs, stop."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class JobServer:
    """``log`` is told in chunks; the first ``breaks`` followers are cut off after the second chunk.

    With ``interrupts`` this process gets a SIGINT after the first chunk, and the job runs until a stop.
    """

    log: tuple[str, ...] = ("Running entrypoint\n", "half a li", "ne\n", "done\n")
    ends: dict[str, Any] = field(default_factory=lambda: {"status": "SUCCEEDED", "driver_exit_code": 0})
    breaks: int = 0
    interrupts: bool = False
    token: str = ""
    refuses: str = ""
    obeys: bool = True
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    followers: int = 0
    stopped: list[str] = field(default_factory=list)
    url: str = ""

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        return await handler(request)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    async def package(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response(status=404)
        if self.refuses:
            return web.Response(status=500, text=f"Traceback\n  File x\nValueError: {self.refuses}\n")
        self.files = zipfile.ZipFile(io.BytesIO(await request.read())).namelist()
        return web.Response()

    async def submit(self, request: web.Request) -> web.Response:
        job = await request.json()
        name = job.get("submission_id") or "raysubmit_1"
        self.jobs[name] = job | {"type": "SUBMISSION", "submission_id": name, "status": "RUNNING"}
        return web.json_response({"job_id": name, "submission_id": name})

    async def every(self, request: web.Request) -> web.Response:
        return web.json_response(list(self.jobs.values()))

    async def one(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs[request.match_info["name"]])

    async def stop(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not self.obeys:
            return web.Response(status=500, text="no agent\n")
        self.stopped.append(name)
        self.jobs[name]["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        reply = web.WebSocketResponse()
        await reply.prepare(request)
        self.followers += 1
        for number, chunk in enumerate(self.log):
            await reply.send_str(chunk)
            if self.interrupts:
                await asyncio.sleep(0.05)
                os.kill(os.getpid(), signal.SIGINT)
                await reply.receive()
                return reply
            if number == 1 and self.followers <= self.breaks:
                request.transport.abort()
                return reply
        self.jobs[request.match_info["name"]] |= self.ends
        return reply


@contextmanager
def serving(server: JobServer) -> Iterator[JobServer]:
    """The server on a free port of loopback, in a thread; sets its ``url``."""
    app = web.Application(middlewares=[server.guard], client_max_size=2**30)
    app.router.add_get("/api/version", server.version)
    app.router.add_route("*", "/api/packages/{protocol}/{package}", server.package)
    app.router.add_post("/api/jobs/", server.submit)
    app.router.add_get("/api/jobs/", server.every)
    app.router.add_get("/api/jobs/{name}", server.one)
    app.router.add_post("/api/jobs/{name}/stop", server.stop)
    app.router.add_get("/api/jobs/{name}/logs/tail", server.tail)
    loop, runner = asyncio.new_event_loop(), web.AppRunner(app, shutdown_timeout=0.1)

    async def begin() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(begin(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
