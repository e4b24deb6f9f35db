"""P12 and P13: the routed application beside the bare vLLM API server, and stock Ray Serve LLM as a third.

python -m benchmarks.serve_ratios --store ./forge [--pairs 5] [--stock]

Same model files, engine flags and requests, streamed; router, keys, limits, metrics and headers on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks._http import free_port, median_ms, percentile_ms, stream, wait_until_up
from benchmarks._pairs import record, refuse_busy
from largeforge_ray.keyfile import add_key
from largeforge_ray.models.hardware import engine_args, engine_env
from largeforge_ray.routing.experts import model_groups, parse_router
from largeforge_ray.store import open_store

TOKENS, SLOTS = 32, 16
TOPICS = (
    "rivers",
    "bread",
    "maps",
    "rain",
    "chess",
    "bridges",
    "tea",
    "clocks",
    "birds",
    "glass",
    "wool",
    "salt",
)
QUESTIONS = (
    "Tell me about {}.",
    "Why do people like {}?",
    "Write three facts about {}.",
    "A short story on {}.",
)


def prompts(count: int) -> list[str]:
    """Distinct questions no expert's keywords are in."""
    return [QUESTIONS[i % 4].format(TOPICS[(i // 4) % 12]) + f" Variant {i}." for i in range(count)]


@contextmanager
def ours(store: str, router: str, folder: Path) -> Iterator[tuple[str, str]]:
    """The routed application's URL and an API key for it."""
    key, port = add_key(folder / "keys.yaml", "bench", None, None), free_port()
    command = [
        sys.executable,
        "-m",
        "serve_apps.run",
        "--store",
        store,
        "--router",
        router,
        "--port",
        str(port),
    ]
    with server([*command, "--keys", str(folder / "keys.yaml")], f"http://127.0.0.1:{port}/health") as url:
        yield url, key


@contextmanager
def bare(model: Path, context: int, lora_rank: int | None) -> Iterator[str]:
    """The bare API server of vLLM, with the flags our engine has."""
    port = free_port()
    args = engine_args(model, max_model_len=context, max_lora_rank=lora_rank, max_num_seqs=SLOTS)
    flags = ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", "base", "--disable-log-stats"]
    flags += ["--disable-uvicorn-access-log"]
    for name, value in args.items():
        if value is True:
            flags.append(f"--{name.replace('_', '-')}")
        elif value is False:
            flags += [f"--no-{name.replace('_', '-')}"] if name == "enable_chunked_prefill" else []
        else:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    with server(command, f"http://127.0.0.1:{port}/health", engine_env()) as url:
        yield url


@contextmanager
def stock(model: Path, context: int, lora_rank: int | None) -> Iterator[str]:
    """Ray Serve LLM as it comes, with the flags our engine has."""
    port = free_port()
    args = engine_args(model, max_model_len=context, max_lora_rank=lora_rank, max_num_seqs=SLOTS)
    command = [sys.executable, "-m", "benchmarks._stock", str(model), str(port)]
    engine = {name: value for name, value in args.items() if name != "model"}
    url = f"http://127.0.0.1:{port}/v1/models"
    with server([*command, json.dumps(engine)], url, engine_env()) as up:
        yield up.removesuffix("/v1/models")


@contextmanager
def server(command: list[str], health: str, env: dict[str, str] | None = None) -> Iterator[str]:
    process = subprocess.Popen(
        command, env=os.environ | (env or {}), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        print(f"{Path(command[2]).name} is up after {wait_until_up(health, process):.0f} s")
        yield health.removesuffix("/health")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.serve_ratios", description=__doc__)
    parser.add_argument("--store", default="./forge", help="a store with a router artifact, from a run")
    parser.add_argument("--router", default="live")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--stock", action="store_true", help="measure stock Ray Serve LLM, too")
    parser.add_argument("--requests", type=int, default=96, help="in each round")
    options = parser.parse_args()
    refuse_busy()
    store = open_store(options.store)
    artifact = store.get(options.router)
    router = parse_router((store.fetch(artifact) / "router.json").read_bytes())
    [group] = model_groups(router)
    model = store.fetch(store.get(group.model_key))
    with tempfile.TemporaryDirectory() as folder:
        with ours(options.store, artifact.key, Path(folder)) as (url, key):
            sizes = (group.max_model_len, group.max_lora_rank)
            with bare(model, *sizes) as plain:
                with stock(model, *sizes) if options.stock else nullcontext() as third:
                    other = None if third is None else (third, "base", "")
                    measure((url, "auto", key), (plain, "base", ""), other, options)


def measure(
    routed: tuple[str, str, str],
    plain: tuple[str, str, str],
    third: tuple[str, str, str] | None,
    options: Any,
) -> None:
    def run(target: tuple[str, str, str], count: int, at_once: int) -> Any:
        url, model, key = target
        found = stream(url, prompts(count), at_once, model=model, tokens=TOKENS, key=key)
        assert not found.failed, found.failed
        return found

    command = f"python -m benchmarks.serve_ratios --pairs {options.pairs} --requests {options.requests}"
    # What is cached makes batches of another shape, and those round otherwise: both have seen the prompts.
    run(routed, 8, 1), run(plain, 8, 1)
    one, other = run(routed, 8, 1), run(plain, 8, 1)
    equal = one.texts == other.texts
    made = []
    for at_once in (8, 16):
        run(routed, 32, at_once), run(plain, 32, at_once)
        pairs, firsts, thirds = [], [], []
        if third is not None:
            run(third, 32, at_once)
        for _ in range(options.pairs):
            a, b = run(routed, options.requests, at_once), run(plain, options.requests, at_once)
            pairs.append([a.per_second, b.per_second])
            firsts.append([median_ms(a.first_s), median_ms(b.first_s)])
            if third is not None:
                thirds.append([run(third, options.requests, at_once).per_second, b.per_second])
            print(f"  {at_once}: {pairs[-1][0]:.2f} to {pairs[-1][1]:.2f} req/s, TTFT {firsts[-1]}")
        what = f"routed application req/s / bare vLLM API server, streaming, {at_once} at once"
        more = {"at_once": at_once, "ttft_p50_ms": firsts}
        if thirds:
            more["stock_ray_serve_llm"] = round(median(a / b for a, b in thirds), 3)
            print(f"  {at_once}: stock Ray Serve LLM / bare {more['stock_ray_serve_llm']}")
        made.append(
            record(f"P12-{at_once}", what, pairs, equal=equal, goal=">= 0.95", command=command, **more)
        )
    added, spread = [], []
    for _ in range(options.pairs):
        a, b = run(routed, 24, 1), run(plain, 24, 1)
        added.append([median_ms(a.first_s), median_ms(b.first_s)])
        spread.append([percentile_ms(a.between_s, 0.9), percentile_ms(b.between_s, 0.9)])
    what = "inter-token p90, routed / bare, 1 at once"
    extra = {"ttft_p50_ms": added, "added_ttft_ms": sorted(round(a - b, 2) for a, b in added)}
    record("P13", what, spread, equal=equal, goal="<= 1.15", command=command, **extra)
    print(f"P13  added TTFT p50, ms: {extra['added_ttft_ms']}, goal <= 15")


if __name__ == "__main__":
    main()
