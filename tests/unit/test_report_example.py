"""A fabricated run in a real store, for the report's tests, and what is collected from it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.observe import EventLog
from largeforge_ray.observe.collect import collect
from largeforge_ray.store import Store, artifact_key, open_store

RUN = "20260102-090000-ab12"
NAMES = ("base", "prompts", "rows", "tuned", "outcomes", "live")
ITEMS = 40
START = 1_767_344_400.0
PLAN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "base": ("model", "model", ()),
    "prompts": ("dataset", "dataset", ()),
    "rows": ("teach", "dataset", ("prompts", "base")),
    "tuned": ("train", "adapter", ("rows", "base")),
    "outcomes": ("evaluate", "outcomes", ("base", "tuned", "prompts")),
    "live": ("promote", "router", ("tuned", "outcomes", "base")),
}
GAIN = {"gain": 0.275, "low": 0.125, "high": 0.425, "confidence": 0.95, "n": ITEMS}
METRICS: dict[str, dict[str, Any]] = {
    "base": {"bytes": 269_000_000},
    "prompts": {"rows": 200, "train": 160, "test": 40},
    "rows": {
        "prompts": 160,
        "rows": 401,
        "kept": 412,
        "duplicates": 11,
        "dropped": 214,
        "failed": 14,
        "reasons": {
            "exact: answer differs": 171,
            "length: cut off at the token limit": 43,
            "failed: timed out": 14,
        },
        "tokens": 48_211,
    },
    "tuned": {"steps": 90, "final_loss": 0.41, "tokens": 61_000, "trainable_parameters": 460_800},
    "outcomes": {
        "candidates": {
            "base": {"accuracy": 0.35, "low": 0.2, "high": 0.5, "n": ITEMS, "errors": 0},
            "tuned": {"accuracy": 0.625, "low": 0.475, "high": 0.775, "n": ITEMS, "errors": 1},
        },
        "gains": {"tuned": {"against": "base", **GAIN}},
    },
    "live": {"gain": 0.275, "low": 0.125, "high": 0.425, "live": ["base", "tuned"]},
}
SPENT: dict[str, tuple[float, dict[str, float]]] = {
    "rows": (214.0, {"ray start": 6.2, "engine start": 31.4, "generation": 171.0}),
    "tuned": (143.5, {"worker start": 14.1, "training": 128.3}),
    "outcomes": (61.2, {"generation": 58.8}),
    "live": (4.1, {"probe": 3.2}),
}


def losses(steps: int = 90) -> list[list[float]]:
    noise = random.Random(7)
    return [[s, 0.4 + 2.2 * math.exp(-s / 22) + noise.uniform(-0.14, 0.14)] for s in range(1, steps + 1)]


def write_items(folder: Path, marker: str = "") -> None:
    """Outcomes of both experts, tuned better on thirteen items, worse on two, both wrong on some."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    outcomes, items = [], []
    for i in range(ITEMS):
        right = {"base": i < 14, "tuned": 2 <= i < 27}
        for expert in ("base", "tuned"):
            wrong = f"The train needs {i + 4} minutes, because 60 divided by {i + 2} is about that." + marker
            outcomes.append(
                {
                    "item_id": f"trains-{i:03d}",
                    "item_hash": f"{i:064x}",
                    "task": "prompts",
                    "expert": expert,
                    "expert_key": "0" * 64,
                    "sample": 0,
                    "answer": f"{60 + i} minutes{marker}" if right[expert] else wrong,
                    "quality": float(right[expert]),
                    "error": "timed out" if (expert, i) == ("tuned", 28) else None,
                }
            )
        prompt = f"A train leaves at 9:00 and arrives at 10:{i:02d}. How many minutes does it travel?{marker}"
        answer = json.dumps(f"{60 + i} minutes{marker}")
        items.append(
            {"item_id": f"trains-{i:03d}", "item_hash": f"{i:064x}", "prompt": prompt, "answer": answer}
        )
    pq.write_table(pa.Table.from_pylist(outcomes), folder / "outcomes.parquet")
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")


def make_run(
    store: Store,
    names: tuple[str, ...] = NAMES,
    *,
    cached: tuple[str, ...] = ("base", "prompts"),
    marker: str = "",
    failing: str | None = None,
    run: str = RUN,
) -> str:
    """Put a run with these stages into the store. ``marker`` is added to every text a user provides;
    the run ends at the ``failing`` stage."""
    plan, keys = [], {}
    for name in names:
        kind, artifact_kind, inputs = PLAN[name]
        inputs = tuple(one for one in inputs if one in keys)
        parents = [keys[one] for one in inputs]
        config: dict[str, Any] = {"kind": kind, "inputs": {}}
        if kind == "promote":
            config |= {"gate": {"confidence": 0.95, "min_gain": 0.0}}
            config["inputs"] = {"candidate": keys["tuned"][:16]}
        keys[name] = artifact_key(artifact_kind, config | {"stage": name}, parents)
        stage = {
            "name": name + marker,
            "kind": kind,
            "artifact_kind": artifact_kind,
            "key": keys[name],
            "parents": parents,
            "inputs": [one + marker for one in inputs],
            "cached": name in cached,
            "config": config,
            "resources": {"cpus": 1.0, "gpus": 0, "memory_gib": 4.2},
        }
        plan.append(stage)
    record = {
        "run": run,
        "manifest": "quickstart" + marker,
        "created": "2026-01-02T09:00:00+00:00",
        "stages": plan,
    }
    store.write_bytes(f"runs/{run}/plan.json", json.dumps(record).encode())
    store.write_bytes(f"runs/{run}/manifest.yaml", f"name: quickstart{marker}\nstore: ./forge\n".encode())
    _write_events(store, run, plan, cached, marker, failing)
    return run


def _write_events(
    store: Store,
    run: str,
    plan: list[dict[str, Any]],
    cached: tuple[str, ...],
    marker: str,
    failing: str | None,
) -> None:
    now = START
    with EventLog(store, run, clock=lambda: now) as log:
        for stage in plan:
            name = stage["name"].removesuffix(marker) if marker else stage["name"]
            seconds, phases = SPENT.get(name, (1.0, {}))
            if name == failing:
                log.emit(stage["name"], "started")
                now += 3.0
                log.emit(stage["name"], "failed", message=f"'{name}' did not pass: gain too small{marker}")
                return
            _publish(store, stage, name, seconds, phases, marker)
            if name in cached:
                now += 0.2
                log.emit(stage["name"], "cached")
                continue
            log.emit(stage["name"], "started")
            for step, loss in losses() if name == "tuned" else []:
                log.emit(stage["name"], "progress", {"step": step, "loss": loss})
            now += seconds + 0.6
            log.emit(stage["name"], "finished", {"seconds": seconds, "phases": phases})


def _publish(
    store: Store, stage: dict[str, Any], name: str, seconds: float, phases: dict[str, float], marker: str
) -> None:
    metrics = dict(METRICS[name])
    if name == "tuned":
        metrics["losses"] = losses()
    if name == "rows" and marker:
        metrics["reasons"] = {f"exact{marker}": 214}
    with store.staging(stage["artifact_kind"], stage["key"]) as folder:
        (folder / "facts.json").write_text(json.dumps(metrics))
        if name == "outcomes":
            write_items(folder, marker)
        store.publish(
            stage["artifact_kind"],
            stage["key"],
            stage["name"],
            stage["parents"],
            stage["config"],
            folder,
            metrics,
            {"seconds": seconds, "phases": phases},
        )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def test_everything_of_a_complete_run_is_collected(store: Store) -> None:
    data = collect(store, make_run(store))
    assert (data.run, data.manifest, data.state) == (RUN, "quickstart", "finished")
    assert data.total_s == pytest.approx(0.4 + 214.6 + 144.1 + 61.8 + 4.7 - 0.2, abs=0.01)
    assert [stage.state for stage in data.stages] == ["cached", "cached", *["finished"] * 4]
    assert [len(curve.points) for curve in data.losses] == [90]
    assert [one.name for one in data.evaluations[0].candidates] == ["base", "tuned"]
    assert data.promotions[0].candidate == "tuned"
    assert data.promotions[0].gain is not None
    assert data.promotions[0].gain.confidence == 0.95
    assert data.funnels[0].samples == 640
    assert {cost.stage: cost.paid for cost in data.costs}["prompts"] is False
    assert "name: quickstart" in data.manifest_text


def test_the_items_shown_are_the_most_changed_with_their_texts(store: Store) -> None:
    [comparison] = collect(store, make_run(store)).comparisons
    assert (comparison.base, comparison.expert) == ("base", "tuned")
    groups = [pair.group for pair in comparison.pairs]
    assert groups == ["improved"] * 4 + ["worse"] * 2 + ["unsolved"] * 4
    worse = next(pair for pair in comparison.pairs if pair.group == "worse")
    assert worse.item_id == "trains-000"
    assert worse.expected == "60 minutes"
    assert worse.base_answer == "60 minutes"
    assert worse.prompt is not None
    assert worse.prompt.startswith("A train leaves")


def test_the_lineage_has_every_artifact_and_edge_and_ancestors_from_elsewhere(store: Store) -> None:
    earlier = artifact_key("dataset", {"from": "elsewhere"}, [])
    with store.staging("dataset", earlier) as folder:
        (folder / "train.jsonl").write_text("{}")
        store.publish("dataset", earlier, "traffic", [], {}, folder)
    run = make_run(store)
    plan = json.loads(store.read_bytes(f"runs/{run}/plan.json"))
    gone = artifact_key("dataset", {"from": "nowhere"}, [])
    plan["stages"][1]["parents"] = [earlier, gone]
    store.write_bytes(f"runs/{run}/plan.json", json.dumps(plan).encode())
    lineage = collect(store, run).lineage
    names = {node.key: node.name for node in lineage.nodes}
    assert set(names.values()) == {*NAMES, "traffic", "not in the store"}
    edges = {(names[parent], names[child]) for parent, child in lineage.edges}
    assert edges == {
        *((parent, child) for child, (_, _, inputs) in PLAN.items() for parent in inputs),
        ("traffic", "prompts"),
        ("not in the store", "prompts"),
    }


def test_a_run_that_is_going_on_has_what_it_logged_so_far(store: Store) -> None:
    run = make_run(store, failing="tuned")
    plan = json.loads(store.read_bytes(f"runs/{run}/plan.json"))
    lines = store.read_bytes(f"runs/{run}/events.jsonl").splitlines(keepends=True)[:-1]
    store.write_bytes(f"runs/{run}/events.jsonl", b"".join(lines))
    with EventLog(store, run, clock=lambda: START + 300) as log:
        for step, loss in [(1, 2.5), (2, 2.0), (2, 2.1), (3, float("nan"))]:
            log.emit("tuned", "progress", {"step": step, "loss": loss})
    data = collect(store, run)
    assert data.state == "running"
    assert [stage.state for stage in data.stages][3:] == ["running", "planned", "planned"]
    assert data.losses[0].points == ((1, 2.5), (2, 2.1))
    assert data.losses[0].not_finite == 1
    assert data.stages[3].spans[0].end_s == pytest.approx(299.8)
    assert [node.state for node in data.lineage.nodes][-1] == "absent"
    assert len(plan["stages"]) == len(data.stages)


def test_a_damaged_artifact_costs_its_section_and_no_other(store: Store) -> None:
    run = make_run(store)
    outcomes = store.get("outcomes")
    assert store.local_root is not None
    (store.local_root / outcomes.location / "outcomes.parquet").write_bytes(b"cut")
    data = collect(store, run)
    assert data.evaluations == ()
    assert "‘outcomes’ cannot be read" in data.absent["accuracy"]
    assert data.losses
    assert data.comparisons == ()
