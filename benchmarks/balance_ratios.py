"""P16: prompt tokens that two replicas compute, round robin / by what each has computed before.

python -m benchmarks.balance_ratios --store ./forge [--pairs 5]

Eight applications with a system prompt of 300 words each, and conversations of three turns, mixed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks._http import free_port
from benchmarks._pairs import record, refuse_busy
from benchmarks._replica import MODEL, TOKEN
from largeforge_ray.promote.views import ReplicaReport
from largeforge_ray.routing.balance import Balancer
from largeforge_ray.routing.experts import EngineOptions, Expert, model_groups, parse_router
from largeforge_ray.store import open_store

WORDS = [
    *("river", "stone", "cloud", "bread", "lamp", "field", "cotton", "winter"),
    *("harbour", "letter", "copper", "garden", "morning", "silver", "window"),
]
APPLICATIONS, CONVERSATIONS, TURNS, AT_ONCE = 8, 16, 3, 4


class RoundRobin:
    """Each replica in turn, whatever it is asked."""

    def __init__(self) -> None:
        self._turn = count()

    def choose(self, loads: Mapping[str, int], slots: int, blocks: Iterable[int] = ()) -> str:
        return sorted(loads)[next(self._turn) % len(loads)]


def workload(seed: int) -> list[list[dict[str, str]]]:
    """Conversations as lists of messages, the user's turns only; no two seeds share a text."""
    draw = random.Random(seed)

    def words(n: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(n))

    systems = [words(300) for _ in range(APPLICATIONS)]
    return [
        [{"role": "system", "content": systems[i % APPLICATIONS]}]
        + [{"role": "user", "content": words(25)} for _ in range(TURNS)]
        for i in range(CONVERSATIONS)
    ]


async def run(addresses: list[str], totals: list[Path], balancer: Any, seed: int) -> tuple[float, list[str]]:
    """Prompt tokens computed for a workload, and the answers."""
    import aiohttp

    from serve_apps.fleet import Fleet
    from serve_apps.ports import Ask

    expert = Expert("base", "live", MODEL, EngineOptions(1024))
    limit = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession() as client:
        fleet = Fleet(client, slots=8, balancer=balancer)
        fleet.update(
            [
                ReplicaReport(f"r{i}", MODEL, a, 1, token=TOKEN, served=(expert.version,))
                for i, a in enumerate(addresses)
            ],
            keep=False,
        )
        answers: list[str] = []

        async def converse(turns: list[dict[str, str]]) -> None:
            said = [turns[0]]
            for turn in turns[1:]:
                said.append(turn)
                body = {"messages": said, "model": "x", "temperature": 0, "max_tokens": 8}
                ask = Ask("/v1/chat/completions", expert, json.dumps(body).encode())
                async with limit:
                    _, *parts = [part async for part in fleet.answer(ask)]
                text = json.loads(b"".join(parts))["choices"][0]["message"]["content"]
                answers.append(text)
                said.append({"role": "assistant", "content": text})

        before = computed(totals)
        await asyncio.gather(*(converse(turns) for turns in workload(seed)))
        await asyncio.sleep(0.2)
    return computed(totals) - before, sorted(answers)


def computed(totals: list[Path]) -> float:
    counted = [json.loads(path.read_text()) for path in totals if path.exists()]
    return float(sum(c["prompt"] - c["cached"] for c in counted))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.balance_ratios", description=__doc__)
    parser.add_argument("--store", default="./forge")
    parser.add_argument("--router", default="live")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    refuse_busy()
    store = open_store(options.store)
    router = parse_router((store.fetch(store.get(options.router)) / "router.json").read_bytes())
    model = store.fetch(store.get(model_groups(router)[0].model_key))
    with tempfile.TemporaryDirectory() as folder:
        ports, totals = [free_port(), free_port()], [Path(folder) / f"{i}.json" for i in range(2)]
        processes = [
            subprocess.Popen([sys.executable, "-m", "benchmarks._replica", str(model), str(port), str(path)])
            for port, path in zip(ports, totals, strict=True)
        ]
        try:
            wait(ports)
            measure([f"127.0.0.1:{port}" for port in ports], totals, options.pairs)
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(60)


def wait(ports: list[int]) -> None:
    import socket

    until = time.monotonic() + 180
    for port in ports:
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)


def measure(addresses: list[str], totals: list[Path], pairs: int) -> None:
    found, equal = [], True
    for pair in range(pairs):
        # Prompts that were seen before are cached, so each round has its own.
        turn, texts = asyncio.run(run(addresses, totals, RoundRobin(), 2 * pair))
        aware, _ = asyncio.run(run(addresses, totals, Balancer(), 2 * pair + 1))
        found.append([turn, aware])
        print(f"  {turn:.0f} to {aware:.0f} prompt tokens computed")
        equal = equal and len(texts) == CONVERSATIONS * TURNS
    record(
        "P16",
        "prompt tokens computed by two replicas, round robin / prefix- and session-aware",
        found,
        equal=equal,
        goal=">= 1.5",
        command=f"python -m benchmarks.balance_ratios --pairs {pairs}",
    )


if __name__ == "__main__":
    main()
