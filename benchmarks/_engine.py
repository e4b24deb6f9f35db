"""vLLM answers prompts greedily at several loads. One engine a process: two would share the machine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from largeforge_ray.types import Message

CONTEXT = 1024
WARM_UP = 8
"""Prompts before anything is measured: the first ones also compile n-gram look-up and page the weights in."""
LIKELIEST = 8
"""Tokens that are kept of every place of a reference answer."""
COUNTED = ("drafts", "draft_tokens", "accepted_tokens")


def in_own_process(module: str, job: dict[str, Any], folder: Path, preload: Sequence[Path]) -> dict[str, Any]:
    """What ``measure`` finds, by ``python -m MODULE --child JOB OUT`` with ``preload`` as its LD_PRELOAD."""
    asked, out = folder / "job.json", folder / "found.json"
    asked.write_text(json.dumps(job), encoding="utf-8")
    env = os.environ | ({"LD_PRELOAD": ":".join(map(str, preload))} if preload else {})
    subprocess.run([sys.executable, "-m", module, "--child", asked, out], check=True, env=env)
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


async def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Start the engine of a job and find, for each of its loads, seconds, answers and what was drafted.

    ``model``        folder
    ``speculation``  vLLM's ``speculative_config``, or None
    ``prompts``      chats that end with the user's turn
    ``max_tokens``   of an answer
    ``loads``        requests at once -> how many of the prompts are asked, from the first on
    ``reference``    ask once more with the likeliest tokens of every place; nothing is timed then

    A semaphore holds the load: when a request ends the next one is sent, until the last are under way.
    """
    from largeforge_ray.models import engine_args, engine_env

    os.environ.update(engine_env())
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    most = max(map(int, job["loads"]))
    args = engine_args(Path(job["model"]), max_model_len=CONTEXT, max_num_seqs=most)
    # Every load asks the same prompts, and each must prefill them.
    args |= {"enable_prefix_caching": False, "speculative_config": job["speculation"]}
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**args))
    try:
        tokenizer: Any = llm.get_tokenizer()
        ids = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False)
            for p in chats(job)
        ]
        limits = {"temperature": 0.0, "max_tokens": job["max_tokens"]}
        await ask(llm, ids[:WARM_UP], WARM_UP, limits)
        found: dict[str, Any] = {}
        for load, number in job["loads"].items():
            before, started = counted(), time.perf_counter()
            answers = await ask(llm, ids[:number], int(load), limits)
            found[load] = {
                "seconds": time.perf_counter() - started,
                "answers": [list(answer.token_ids) for answer in answers],
                **{name: value - before[name] for name, value in counted().items()},
            }
        if job["reference"]:
            answers = await ask(llm, ids, most, limits | {"logprobs": LIKELIEST})
            found["reference"] = [[list(a.token_ids), likeliest(a)] for a in answers]
    finally:
        llm.shutdown()
    return found


def chats(job: dict[str, Any]) -> list[list[Message]]:
    """The prompts of a job. Raises ``ValueError`` if a load asks for more than there are."""
    prompts: list[list[Message]] = job["prompts"]
    if (wanted := max(job["loads"].values())) > len(prompts):
        raise ValueError(f"{wanted} prompts are to be asked and there are {len(prompts)}; bring more rows")
    return prompts


async def ask(llm: Any, prompts: list[list[int]], at_once: int, limits: dict[str, Any]) -> list[Any]:
    """vLLM's answers in the prompts' order, never more than ``at_once`` under way."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    turn = asyncio.Semaphore(at_once)

    async def one(ids: list[int]) -> Any:
        params = SamplingParams(**limits, output_kind=RequestOutputKind.FINAL_ONLY)
        async with turn:
            async for output in llm.generate({"prompt_token_ids": ids}, params, uuid4().hex):
                return output.outputs[0]
        raise RuntimeError("the engine ended a request without an answer")

    return await asyncio.gather(*map(one, prompts))


def counted() -> dict[str, int]:
    """vLLM's counters of speculation since the engine started, zeros without one.

    The engine counts a step before whoever waits for its answers goes on, so nothing is under way here.
    """
    from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

    found = {m.name: m.value for m in get_metrics_snapshot() if isinstance(m, Counter)}
    return {name: found.get(f"vllm:spec_decode_num_{name}", 0) for name in COUNTED}


def likeliest(answer: Any) -> list[dict[int, float]]:
    """Log-probabilities by token id, of every place."""
    return [{token: known.logprob for token, known in place.items()} for place in answer.logprobs]
