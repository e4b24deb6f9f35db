"""A client that measures streams: requests a second, the time to a first token and between tokens."""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Streams:
    """What the answers of one round were and took; times in seconds."""

    seconds: float
    texts: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return len(self.texts) / self.seconds


def stream(
    url: str, prompts: Sequence[str], at_once: int, *, model: str, tokens: int, key: str = ""
) -> Streams:
    """Ask each prompt greedily, ``at_once`` of them at a time, and read the stream to its end."""
    return asyncio.run(_stream(url, prompts, at_once, model, tokens, key))


async def _stream(
    url: str, prompts: Sequence[str], at_once: int, model: str, tokens: int, key: str
) -> Streams:
    import aiohttp

    found = Streams(0.0, texts=[""] * len(prompts))
    waiting = iter(enumerate(prompts))
    headers = {"authorization": f"Bearer {key}"} if key else {}

    async def work(client: aiohttp.ClientSession) -> None:
        for i, prompt in waiting:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": tokens,
                "stream": True,
            }
            found.texts[i] = await _one(client, f"{url}/v1/chat/completions", body, headers, found)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        began = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(at_once)))
        found.seconds = time.perf_counter() - began
    return found


async def _one(client: Any, url: str, body: dict[str, Any], headers: dict[str, str], found: Streams) -> str:
    began = last = time.perf_counter()
    pieces: list[str] = []
    async with client.post(url, json=body, headers=headers) as reply:
        if reply.status != 200:
            found.failed.append(reply.status)
            return ""
        async for line in reply.content:
            if not line.startswith(b"data: {"):
                continue
            value = json.loads(line[6:])
            if "error" in value:
                found.failed.append(-1)
            text = value["choices"][0]["delta"].get("content") if value.get("choices") else None
            if not text:
                continue
            now = time.perf_counter()
            (found.between_s if pieces else found.first_s).append(now - last)
            last = now
            pieces.append(text)
    found.whole_s.append(time.perf_counter() - began)
    return "".join(pieces)


def median_ms(values: Sequence[float]) -> float:
    return 1000 * statistics.median(values)


def percentile_ms(values: Sequence[float], share: float) -> float:
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(url: str, process: Any, limit_s: float = 180) -> float:
    """Seconds until the URL answers 200. Raises ``RuntimeError`` if the process ends or it takes too long."""
    began = time.perf_counter()
    while time.perf_counter() - began < limit_s:
        if process.poll() is not None:
            raise RuntimeError(f"the server of {url} ended with code {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return time.perf_counter() - began
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer within {limit_s:g} s")
