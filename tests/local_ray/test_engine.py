"""One real engine: what it scores, what it refuses, and that the probe sees an adapter it loads wrongly."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.errors import GateError
from largeforge_ray.promote import judge_logits
from largeforge_ray.store import open_store
from largeforge_ray.types import GenerateRequest, Sampling, ScoreRequest
from tests.local_ray.conftest import Forge
from tests.unit._tiny import make_rows, stage_of, table_of

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Adapter:
    """A PEFT folder on the packaged model, and what PEFT computes with it."""

    model: Path
    folder: Path
    reference: dict[str, Any]


@pytest.fixture(scope="module")
def adapter(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """It is drawn and not trained, and moves log-probabilities as far as a training does."""
    import torch

    from largeforge_ray.train.bench import Bench
    from largeforge_ray.train.lora import save_adapter
    from largeforge_ray.train.probe import reference_probe

    home = tmp_path_factory.mktemp("engine")
    store, folder = open_store(forge.store), home / "drawn"
    model = store.fetch(store.get("base"))
    folder.mkdir()
    stage = stage_of("sft", precision="bfloat16")
    bench = Bench(stage, str(model))
    lane = bench.add_lane(stage)
    generator = torch.Generator().manual_seed(1)
    for name, weight in lane.weights().items():
        if ".lora_B." in name:
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    lane.publish()
    table = table_of(model, stage, make_rows("chat", 4), home / "t.arrow")
    reference = reference_probe(bench, lane, table)
    save_adapter(bench.model, lane.name, lane.weights(), folder)
    return Adapter(model, folder, reference)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def running(adapter: Adapter) -> Iterator[tuple[Any, Run]]:
    from largeforge_ray.models.engine import Engine

    async def start() -> Any:
        return Engine(str(adapter.model), max_model_len=512, max_lora_rank=8)

    with asyncio.Runner() as runner:
        engine = runner.run(start())
        yield engine, runner.run
        engine.shutdown()


def ask(running: tuple[Any, Run], adapter: Adapter, folder: Path | None) -> list[tuple[float, ...]]:
    engine, run = running
    ids = adapter.reference["ids"]
    requests = [
        ScoreRequest(f"s{i}", tuple(one), str(folder) if folder else None) for i, one in enumerate(ids)
    ]
    scores = run(engine.score(requests))
    assert [s.error for s in scores] == [None] * len(ids)
    return [s.logprobs for s in scores]


def changed(adapter: Adapter, target: Path, edit: Callable[[dict, dict], dict]) -> Path:
    """A copy of the adapter; ``edit(config, weights)`` changes the config and returns the weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter.folder, target)
    config = json.loads((target / "adapter_config.json").read_text())
    weights = edit(config, load_file(adapter.folder / "adapter_model.safetensors"))
    (target / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
    return target


def test_the_engine_computes_what_peft_does_and_the_same_again(
    running: tuple[Any, Run], adapter: Adapter
) -> None:
    base, adapted = (ask(running, adapter, folder) for folder in (None, adapter.folder))
    result = judge_logits(adapter.reference, base, adapted)
    assert result.effect > 5 * result.error
    assert result.noise < 0.15
    assert [ask(running, adapter, folder) for folder in (None, adapter.folder)] == [base, adapted]


def double_alpha(config: dict, weights: dict) -> dict:
    config["lora_alpha"] *= 2
    return weights


def rank_stabilised(config: dict, weights: dict) -> dict:
    config["use_rslora"] = True
    return weights


def half_the_layers(config: dict, weights: dict) -> dict:
    return {n: w * (int(n.split(".layers.")[1].split(".")[0]) % 2) for n, w in weights.items()}


def nothing_learned(config: dict, weights: dict) -> dict:
    return {n: w * (".lora_A." in n) for n, w in weights.items()}


def names_of_another_class(config: dict, weights: dict) -> dict:
    return {n.replace("base_model.model.model.", "base_model.model.decoder."): w for n, w in weights.items()}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (double_alpha, "the engine computes another adapter"),
        (rank_stabilised, "the engine computes another adapter"),
        (half_the_layers, "the engine computes another adapter"),
        (nothing_learned, "changes none of .* in the engine"),
        (names_of_another_class, "changes none of .* in the engine"),
    ],
)
def test_an_adapter_that_loads_wrongly_is_caught(
    running: tuple[Any, Run], adapter: Adapter, tmp_path: Path, edit: Callable, said: str
) -> None:
    wrong = changed(adapter, tmp_path / edit.__name__, edit)
    base, adapted = (ask(running, adapter, folder) for folder in (None, wrong))
    with pytest.raises(GateError, match=said):
        judge_logits(adapter.reference, base, adapted)


def test_an_adapter_that_cannot_be_loaded_costs_its_own_requests_and_no_others(
    running: tuple[Any, Run], adapter: Adapter, tmp_path: Path
) -> None:
    def unknown_layer(config: dict, weights: dict) -> dict:
        return {n.replace("q_proj", "query"): w for n, w in weights.items()}

    engine, run = running
    strange = str(changed(adapter, tmp_path / "strange", unknown_layer))
    turn = ({"role": "user", "content": "Say hello."},)
    requests = [GenerateRequest(str(a), turn, Sampling(max_tokens=4), a) for a in (strange, None)]
    refused, answered = run(engine.generate(requests))
    assert "the engine cannot load adapter strange" in refused.error
    assert "query" in refused.error
    assert answered.error is None
    [scored] = run(engine.score([ScoreRequest("s", (1, 2, 3), strange)]))
    assert "the engine cannot load adapter strange" in scored.error


def test_a_sequence_that_exceeds_the_context_fails_alone(running: tuple[Any, Run]) -> None:
    engine, run = running
    long, short = run(engine.score([ScoreRequest("long", (5,) * 600), ScoreRequest("short", (5, 6, 7))]))
    assert "600" in long.error
    assert len(short.logprobs) == 2


def test_scores_wait_for_answers_and_are_what_they_are_alone(
    running: tuple[Any, Run], adapter: Adapter
) -> None:
    """In one batch with others, prompt log-probabilities end vLLM's CPU engine if it serves adapters."""
    engine, run = running
    turn = ({"role": "user", "content": "Count to thirty."},)
    answers = [GenerateRequest(f"g{i}", turn, Sampling(max_tokens=40)) for i in range(4)]
    scores = [ScoreRequest(f"s{i}", tuple(one)) for i, one in enumerate(adapter.reference["ids"])]

    async def both() -> Any:
        return await asyncio.gather(engine.generate(answers), engine.score(scores), engine.generate(answers))

    first, scored, second = run(both())
    assert [g.error for g in first + second] == [None] * 8
    assert [s.logprobs for s in scored] == ask(running, adapter, None)


def test_an_answer_tells_how_much_of_its_prompt_was_known(running: tuple[Any, Run]) -> None:
    engine, run = running
    turn = ({"role": "user", "content": "a lantern to Vienna, " * 60},)
    asked = [GenerateRequest(f"c{i}", turn, Sampling(max_tokens=2)) for i in range(2)]
    (first,), (second,) = (run(engine.generate([request])) for request in asked)
    assert first.cached_tokens == 0
    assert 0.5 * second.prompt_tokens < second.cached_tokens < second.prompt_tokens
    assert (first.mean_logprob, first.token_ids) == (None, ())
