"""What a router's decision costs on one core.

python -m benchmarks.routing_ratios                     # seconds

P15  Milliseconds of a keyword decision, median and 99th percentile, by the number of experts. Prompts have 20
     to 20,000 characters, conversations one to eight turns, and every expert's state is known.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from typing import Any

from benchmarks._pairs import refuse_busy, write_down

COMMAND = "python -m benchmarks.routing_ratios"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
EXPERTS = (2, 8, 32)
KEYWORDS, WORDS = 24, 2000


def word(rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 9)))


def table(rng: random.Random, words: list[str], experts: int) -> dict[str, Any]:
    def expert(name: str, keywords: dict[str, float]) -> dict[str, Any]:
        shared = {"state": "live", "model_key": "a" * 64, "engine": {"max_model_len": 1024}}
        return shared | {"name": name, "territory": {"prompts": [], "keywords": keywords}}

    named = [expert(f"e{i}", {w: rng.random() for w in rng.sample(words, KEYWORDS)}) for i in range(experts)]
    policy = {"kind": "keyword", "fallback": "base", "threshold": 0.5, "wait_weight": 0.01}
    return {"policy": policy, "experts": [expert("base", {}), *named]}


def conversation(rng: random.Random, words: list[str]) -> tuple[str, ...]:
    def turn() -> str:
        return " ".join(rng.choice(words) for _ in range(int(10 ** rng.uniform(0.6, 3.5))))

    return tuple(turn() for _ in range(rng.randint(1, 8)))


def milliseconds(experts: int, decisions: int) -> list[float]:
    from largeforge_ray.routing import Observation, build_policy, parse_router
    from largeforge_ray.routing.policy import ExpertState

    rng = random.Random(experts)
    words = [word(rng) for _ in range(WORDS)]
    policy = build_policy(parse_router(table(rng, words, experts)))
    names = ["base", *(f"e{i}" for i in range(experts))]
    took = []
    for i in range(decisions):
        turns = tuple(
            " ".join(rng.choice(words) for _ in range(int(10 ** rng.uniform(0.6, 3.5))))
            for _ in range(rng.randint(1, 8))
        )
        states = {name: ExpertState(rng.random() < 0.9, rng.random()) for name in names}
        started = time.perf_counter()
        policy.decide(Observation(str(i), turns), states)
        took.append((time.perf_counter() - started) * 1000)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description="What a router's decision costs.")
    parser.add_argument("--decisions", type=int, default=2000)
    options = parser.parse_args()
    refuse_busy()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {}
    for experts in EXPERTS:
        took = milliseconds(experts, options.decisions)
        cuts = statistics.quantiles(took, n=100)
        found[str(experts)] = {"p50_ms": round(cuts[49], 3), "p99_ms": round(cuts[98], 3)}
    written = {
        "id": "P15-keyword",
        "what": "milliseconds of a keyword decision, by experts",
        "goal": "p99 <= 1",
    }
    print(write_down("P15-keyword", written | {"ms": found}, command=COMMAND))


if __name__ == "__main__":
    main()
