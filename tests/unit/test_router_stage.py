"""The router stage in a real run: what it learns from, what it writes, and what a promotion takes over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.config import parse_manifest
from largeforge_ray.data import row_hash
from largeforge_ray.errors import ConfigError, DataError, ModelError
from largeforge_ray.evaluate import write_outcomes
from largeforge_ray.flow import Tools, make_plan, run_plan
from largeforge_ray.observe import build_report
from largeforge_ray.routing import Observation, Policies, parse_router
from largeforge_ray.store import Store, open_store
from tests.unit._bert import SUBJECTS, tiny_bert
from tests.unit._tiny import tiny_model
from tests.unit.test_routing_meaning import prompts_of

START = """\
name: demo
model: {source: tiny, max_model_len: 512}
stages:
  - {name: chats, kind: dataset, source: chats.jsonl, split: {test: 0.0}}
  - {name: orders, kind: train, algorithm: sft, data: chats, lora: {rank: 4}}
  - {name: labelled, kind: dataset, source: labelled.jsonl, split: {test: 0.0}}
  - {name: outcomes, kind: evaluate, candidates: [base, orders], items: items}
  - {name: items, kind: dataset, source: items.jsonl, split: {test: 0.99}}
"""
LABELLED = """\
  - name: routing
    kind: router
    prompts: labelled
    experts: [orders]
    encoder_source: bert
    policy: neural
"""
FROM_OUTCOMES = "  - {name: routing, kind: router, outcomes: outcomes, encoder_source: bert, held_out: 0.3}\n"
LIVE = """\
  - name: live
    kind: promote
    candidate: orders
    gate: {outcomes: outcomes}
    policy: {kind: learned, router: routing, cost_weight: 0.1}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tiny_model(folder)
    tiny_bert(folder)
    orders, others = prompts_of("orders", 40), prompts_of("sums", 20) + prompts_of("seas", 20)
    chat = [{"messages": [*_asks(p), {"role": "assistant", "content": "{}"}]} for p in orders[:16]]
    rows = [{"prompt": p, "expert": "orders"} for p in orders] + [
        {"prompt": p, "expert": "base"} for p in others
    ]
    items = [{"prompt": p, "answer": "right"} for p in dict.fromkeys(orders + others)]
    for name, written in (("chats", chat), ("labelled", rows), ("items", items)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    return folder


def _asks(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def refuse(*args: Any, **more: Any) -> Any:
    raise AssertionError("a router stage starts no engine and no Ray")


TOOLS = Tools(refuse, refuse, refuse, refuse, refuse, refuse, lambda event: None)


def run(text: str, home: Path, store: Store) -> dict[str, Any]:
    """Run it with an adapter and outcomes that are in the store already."""
    manifest = parse_manifest(text)
    plan = make_plan(manifest, store, home)
    _publish(store, plan["orders"], lambda folder: (folder / "adapter").write_text("weights"))
    _publish(store, plan["outcomes"], _outcomes)
    return run_plan(plan, manifest, store, tools=TOOLS).artifacts


def _publish(store: Store, stage: Any, fill: Any) -> None:
    with store.staging(stage.artifact_kind, stage.key) as folder:
        fill(folder)
        store.publish(
            stage.artifact_kind,
            stage.key,
            stage.name,
            stage.parents,
            stage.config,
            folder,
            {},
            {"seconds": 0.1},
        )


def _outcomes(folder: Path) -> None:
    items, rows = [], []
    for subject in SUBJECTS:
        for prompt in dict.fromkeys(prompts_of(subject, 40, seed=5)):
            digest = row_hash(_asks(prompt))
            items.append(
                {"item_id": digest[:8], "item_hash": digest, "messages": _asks(prompt), "answer": "x"}
            )
            for expert in ("base", "orders"):
                quality = float((subject == "orders") == (expert == "orders"))
                rows.append(
                    {"item_id": digest[:8], "item_hash": digest, "task": "items", "expert": expert}
                    | {"expert_key": "k", "sample": 0, "answer": "", "quality": quality, "metric": "exact"}
                    | {
                        "confidence": 0.5,
                        "prompt_tokens": 1,
                        "completion_tokens": 1,
                        "seconds": 0.1,
                        "cost": 0.0,
                    }
                    | {"error": None}
                )
    write_outcomes(folder, rows, items)


def test_labelled_prompts_make_a_router_that_is_measured_and_shown(home: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    made = run(START + LABELLED, home, store)["routing"]
    folder = store.fetch(made)
    router = parse_router((folder / "router.json").read_bytes())
    assert [(e.name, bool(e.adapter_key)) for e in router.experts] == [("base", False), ("orders", True)]
    policy = Policies(folder).build(router)
    assert policy.decide(Observation("r", (prompts_of("orders", 1, seed=7)[0],))).chosen == "orders"
    assert policy.decide(Observation("r", (prompts_of("seas", 1, seed=7)[0],))).chosen == "base"
    assert made.metrics["accuracy"] >= 0.9
    assert set(made.metrics["by_kind"]) == {"keyword", "neural", "hybrid", "learned"}
    assert made.metrics["learnt_from"] + made.metrics["held_out"] == 80
    assert sum(map(sum, made.metrics["confusion"])) == made.metrics["held_out"]
    (run_id,) = (path.name for path in (tmp_path / "runs").iterdir())
    assert 'id="routers"' in build_report(store, run_id)


def test_outcomes_make_a_learned_router_of_the_candidates(home: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    made = run(START + FROM_OUTCOMES, home, store)["routing"]
    folder = store.fetch(made)
    policies, router = Policies(folder), parse_router((folder / "router.json").read_bytes())
    assert policies.kinds == ("keyword", "neural", "hybrid", "learned")
    decision = policies.build(router).decide(Observation("r", (prompts_of("orders", 1, seed=7)[0],)))
    assert (decision.policy, decision.chosen) == ("learned", "orders")
    assert made.metrics["oracle"]["quality"] == 1.0
    assert made.metrics["quality"] > 0.9


def test_a_promotion_takes_policy_and_weights_from_the_router_stage(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("largeforge_ray.flow.promotion.check_adapter", lambda *a, **k: {})
    monkeypatch.setattr("largeforge_ray.flow.promotion.probe_adapter", lambda *a: {})
    store = open_store(tmp_path)
    gate_passes = FROM_OUTCOMES.replace(
        "held_out: 0.3", "prices: {orders: {per_1k_prompt: 1.0, per_1k_completion: 2.0}}"
    )
    text = START + gate_passes + LIVE.replace("outcomes: outcomes}", "outcomes: outcomes, min_gain: -1.0}")
    made = run(text, home, store)
    folder = store.fetch(made["live"])
    router = parse_router((folder / "router.json").read_bytes())
    assert (router.policy.kind, router.policy.threshold, router.policy.cost_weight) == ("learned", 0.0, 0.1)
    assert {e.name: e.price.per_1k_tokens for e in router.experts} == {"base": 0.0, "orders": 3.0}
    asked = Observation("r", (prompts_of("orders", 1, seed=7)[0],))
    dear = Policies(folder).build(router).decide(asked)
    assert "learned" in Policies(folder).kinds
    assert dear.scores["orders"] > 0.9
    assert dear.chosen == "orders"
    assert made["routing"].key in made["live"].parents


def test_a_row_for_an_expert_that_is_not_listed_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    for path in home.iterdir():
        (tmp_path / "home" / path.name).symlink_to(path)
    labelled = tmp_path / "home/labelled.jsonl"
    labelled.unlink()
    labelled.write_text('{"prompt": "reef", "expert": "seas", "id": "r1"}\n')
    with pytest.raises(
        DataError, match=r"item 'r1' of 'labelled' is for expert 'seas'; .* one of: base, orders"
    ):
        run(START + LABELLED, tmp_path / "home", open_store(tmp_path / "forge"))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{name: r, kind: router}", "learns from one thing; give prompts"),
        ("{name: r, kind: router, prompts: labelled, outcomes: outcomes}", "learns from one thing"),
        ("{name: r, kind: router, prompts: labelled}", "prompts name experts; list their stages"),
        ("{name: r, kind: router, prompts: labelled, experts: [orders, orders]}", "name one stage twice"),
        ("{name: r, kind: router, outcomes: outcomes, experts: [orders]}", "its candidates; remove experts"),
        ("{name: r, kind: router, outcomes: labelled}", "'labelled' produces dataset, but outcomes needs"),
        (
            "{name: r, kind: router, prompts: labelled, experts: [chats]}",
            "'chats' produces dataset, but experts",
        ),
        ("{name: r, kind: router, outcomes: outcomes, method: knnn}", "did you mean 'knn'?"),
    ],
)
def test_what_a_router_cannot_learn_from_is_refused(stage: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_manifest(f"{START}  - {stage}\n")
    assert message in str(caught.value)


def test_a_policy_that_is_learnt_names_the_stage_that_learns_it() -> None:
    with pytest.raises(ConfigError, match="kind 'learned' reads an embedding that a router stage makes"):
        parse_manifest(START + FROM_OUTCOMES + LIVE.replace("router: routing, ", ""))
    with pytest.raises(ConfigError, match="'orders' learns no policy; name a router stage"):
        parse_manifest(START + FROM_OUTCOMES + LIVE.replace("router: routing", "router: orders"))


def test_an_encoder_that_is_not_there_is_named_before_anything_starts(home: Path, tmp_path: Path) -> None:
    text = START + FROM_OUTCOMES.replace("encoder_source: bert", "encoder_source: org/name")
    with pytest.raises(
        ModelError, match="encoder_source 'org/name' of stage 'routing' is not on this machine"
    ):
        make_plan(parse_manifest(text), open_store(tmp_path), home)
