"""Our CPU engine settings against vLLM's own, on the quickstart's teacher and evaluation requests.

python -m benchmarks.engine_settings --store ./forge

Both engines run one after the other in processes of their own, on the base model of a finished quickstart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from largeforge_ray.models.hardware import engine_env
from largeforge_ray.types import GenerateRequest, Sampling

MANIFEST = Path(__file__).parents[1] / "train_jobs" / "manifests" / "quickstart.yaml"
OURS = ("VLLM_CPU_OMP_THREADS_BIND", "TORCH_COMPILE_DISABLE")
OUR_ARGS = ("block_size",)
PROMPTS = 48


async def measure(model_dir: str) -> dict[str, float]:
    """Seconds to the first answer and tokens per second with and without a shared prefix."""
    from largeforge_ray.models.engine import Engine

    started = time.monotonic()
    engine = Engine(model_dir, max_model_len=1024, max_lora_rank=16)
    numbers = {"start_s": time.monotonic() - started}
    examples, prompts = workload()

    async def run(shown: list[dict[str, str]], count: int, temperature: float) -> tuple[float, int]:
        requests = [
            GenerateRequest(
                f"{temperature}-{count}-{i}",
                (*shown, {"role": "user", "content": prompt}),
                Sampling(temperature=temperature, max_tokens=40, seed=i),
            )
            for i, prompt in enumerate(prompts[:count])
        ]
        began = time.monotonic()
        answers = await engine.generate(requests)
        return time.monotonic() - began, sum(a.completion_tokens for a in answers)

    numbers["first_answer_s"] = (await run(examples, 1, 0.3))[0]
    seconds, tokens = await run(examples, PROMPTS, 0.4)
    numbers["teacher_tokens_per_s"] = tokens / seconds
    seconds, tokens = await run([], PROMPTS, 0.0)
    numbers["evaluation_tokens_per_s"] = tokens / seconds
    engine.shutdown()
    return numbers


def workload() -> tuple[list[dict[str, str]], list[str]]:
    """The teacher's worked examples and the first prompts of the shipped manifest."""
    manifest = yaml.safe_load(MANIFEST.read_text())
    examples = next(s for s in manifest["stages"] if s["kind"] == "teach")["teacher"]["examples"]
    lines = (MANIFEST.parent / "orders.jsonl").read_text().splitlines()[:PROMPTS]
    return examples, [json.loads(line)["prompt"] for line in lines]


def in_own_process(model_dir: Path, *, ours: bool) -> dict[str, float]:
    # engine_env fills in what it is asked for; `--default` takes our settings away again.
    command = [sys.executable, "-m", "benchmarks.engine_settings", "--child", str(model_dir)]
    command += [] if ours else ["--default"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | engine_env())
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def child(model_dir: str, default: bool) -> None:
    import largeforge_ray.models.engine as module

    if default:
        for name in OURS:
            os.environ.pop(name, None)
        module.engine_env = lambda: {k: v for k, v in engine_env().items() if k not in OURS}
        args = module.engine_args
        module.engine_args = lambda *given, **named: {
            name: value for name, value in args(*given, **named).items() if name not in OUR_ARGS
        }
    print(json.dumps(asyncio.run(measure(model_dir))))


def table(ours: list[dict[str, float]], default: list[dict[str, float]]) -> str:
    lines = ["| | ours | vLLM's own | ratio |", "|---|---|---|---|"]
    for name in ours[0]:
        a, b = (sorted(run[name] for run in runs)[len(runs) // 2] for runs in (ours, default))
        lines.append(f"| {name} | {a:.1f} | {b:.1f} | {a / b:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our CPU engine settings against vLLM's own.")
    parser.add_argument("--store", default="./forge", help="the store of a finished quickstart")
    parser.add_argument("--rounds", type=int, default=3, help="pairs, interleaved; the median is shown")
    parser.add_argument("--json", default="", help="also write the numbers here")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--default", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.default)
        return
    from largeforge_ray.store import open_store

    store = open_store(options.store)
    model = store.fetch(store.get("base"))
    runs: dict[bool, list[Any]] = {True: [], False: []}
    for _ in range(options.rounds):
        for ours in runs:
            runs[ours].append(in_own_process(model, ours=ours))
    print(table(runs[True], runs[False]))
    if options.json:
        Path(options.json).write_text(json.dumps({"ours": runs[True], "default": runs[False]}, indent=2))


if __name__ == "__main__":
    main()
