"""Stages that make whole models: what may be merged, where such a model may go, and whose engine answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from largeforge_ray.config import parse_manifest
from largeforge_ray.data import ingest, read_rows
from largeforge_ray.errors import ConfigError, ForgeError
from largeforge_ray.evaluate import read_outcomes
from largeforge_ray.flow import Plan, RunContext, Tools, farming, make_plan, steps
from largeforge_ray.flow.ledger import Ledger
from largeforge_ray.observe import EventLog
from largeforge_ray.store import Store, open_store
from largeforge_ray.teach import Recipe
from largeforge_ray.types import Generation
from tests.unit.test_plan import changed, keys, write_model, write_prompts

MANIFEST = """\
name: demo
model: {source: model, max_model_len: 512}
stages:
  - {name: prompts, kind: dataset, source: orders.jsonl, split: {test: 0.5}}
  - {name: rows, kind: teach, prompts: prompts}
  - {name: tuned, kind: train, data: rows, lora: {rank: 8}}
  - {name: full, kind: train, data: rows, lora: null}
  - {name: merged, kind: merge, adapter: tuned}
  - {name: outcomes, kind: evaluate, candidates: [base, merged, tuned, full], items: prompts}
  - {name: live, kind: promote, candidate: tuned, gate: {outcomes: outcomes}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_prompts(tmp_path / "orders.jsonl", 20)
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def planned(home: Path, store: Store, old: str = "", new: str = "") -> Plan:
    assert not old or MANIFEST.count(old) == 1
    return make_plan(parse_manifest(MANIFEST.replace(old, new) if old else MANIFEST, "m.yaml"), store, home)


def test_a_merge_makes_a_model_out_of_the_base_and_the_adapter(home: Path, store: Store) -> None:
    plan = planned(home, store)
    assert (plan["merged"].artifact_kind, plan["full"].artifact_kind) == ("model", "model")
    assert plan["merged"].inputs == ("tuned", "base")
    assert "merged" in plan["outcomes"].inputs
    assert len(set(keys(plan).values())) == len(plan.stages)
    other = planned(home, store, "lora: {rank: 8}", "lora: {rank: 4}")
    assert changed(plan, other) == ["tuned", "merged", "outcomes", "live"]


def test_a_qlora_adapter_is_merged_where_the_manifest_says_into_which_base(home: Path, store: Store) -> None:
    quantised = MANIFEST.replace("lora: {rank: 8}", "lora: {rank: 8, quantize: nf4}")
    with pytest.raises(ConfigError, match=r"trained on the base rounded to nf4 .*; set dequantize: true"):
        parse_manifest(quantised)
    allowed = quantised.replace("adapter: tuned}", "adapter: tuned, dequantize: true}")
    assert make_plan(parse_manifest(allowed), store, home)["merged"].config["dequantize"] is True


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("adapter: tuned", "adapter: full", 8, "'full' trains every weight .* nothing to merge;"),
        ("lora: {rank: 8}", "algorithm: reward, lora: {rank: 8}", 8, "a reward model, whose head"),
        ("adapter: tuned", "adapter: tuned, dequantize: true", 8, "trained on the base as it is .*; remove"),
        ("adapter: tuned", "adapter: rows", 8, "'rows' produces dataset, but adapter needs"),
        ("candidate: tuned", "candidate: merged", 10, "whole model, and promote takes adapters"),
        ("candidate: tuned", "candidate: full", 10, "whole model, and promote takes adapters"),
        ("tuned, full]", "tuned, rows]", 9, "'rows' produces dataset, .* that produces adapter or model"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_or_promoted_is_refused_at_its_line(
    old: str, new: str, at: int, said: str
) -> None:
    assert MANIFEST.count(old) == 1
    with pytest.raises(ConfigError, match=rf"^m\.yaml:{at}: .*{said}"):
        parse_manifest(MANIFEST.replace(old, new), "m.yaml")


def test_a_dora_adapter_cannot_be_a_candidate_and_its_merged_model_can(home: Path, store: Store) -> None:
    dora = MANIFEST.partition("  - {name: live")[0].replace("lora: {rank: 8}", "lora: {rank: 8, dora: true}")
    with pytest.raises(ForgeError, match="the engine loads no DoRA adapters"):
        make_plan(parse_manifest(dora), store, home)
    assert make_plan(parse_manifest(dora.replace("merged, tuned, full", "merged, full")), store, home)[
        "outcomes"
    ]


def test_a_reward_model_of_every_weight_is_no_candidate(home: Path, store: Store) -> None:
    data = "  - {name: rows, kind: dataset, source: pairs.jsonl}"
    (home / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    text = MANIFEST.replace("  - {name: rows, kind: teach, prompts: prompts}", data)
    text = text.replace("lora: null", "lora: null, algorithm: reward").replace(
        "data: rows, lora: {", "data: other, lora: {"
    )
    text = text.replace(
        "  - {name: tuned", "  - {name: other, kind: teach, prompts: prompts}\n  - {name: tuned"
    )
    with pytest.raises(ForgeError, match="'full' makes a reward model, which scores answers"):
        make_plan(parse_manifest(text), store, home)


def test_training_beyond_what_is_served_is_refused(home: Path, store: Store) -> None:
    with pytest.raises(
        ConfigError, match=r"max_tokens 513 of stage 'tuned' exceeds model\.max_model_len 512: it"
    ):
        planned(home, store, "lora: {rank: 8}", "lora: {rank: 8}, max_tokens: 513")
    planned(home, store, "lora: {rank: 8}", "lora: {rank: 8}, max_tokens: 512")


# Whose engine answers.


class Handle:
    """An engine's actor handle that needs no Ray, and what was heard of all of them, in order."""

    heard: ClassVar[list[str]] = []

    def __init__(self, model_dir: str, *, max_model_len: int, max_lora_rank: int | None, place: Any) -> None:
        self.model = Path(model_dir).name
        self.heard.append(f"start {self.model} for rank {max_lora_rank}")
        self.start_seconds = self.generate = self.stop = self

    def remote(self) -> object:
        return object()


@pytest.fixture
def context(home: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunContext]:
    """A run in which everything before the evaluation is there."""
    import ray

    monkeypatch.setattr(Handle, "heard", [])
    monkeypatch.setattr(ray, "get", lambda value, timeout=None: value)
    monkeypatch.setattr(ray, "wait", lambda refs, **_: (refs, []))
    monkeypatch.setattr(ray, "kill", lambda actor: actor.heard.append(f"stop {actor.model}"))
    manifest = parse_manifest(MANIFEST)
    plan = make_plan(manifest, store, home)
    for stage in (plan[name] for name in ("base", "tuned", "full", "merged", "prompts")):
        with store.staging(stage.artifact_kind, stage.key) as folder:
            (folder / "content").write_text(stage.name)
            if stage.name == "prompts":
                ingest(home / "orders.jsonl", test_share=0.5, target=folder)
            store.publish(stage.artifact_kind, stage.key, stage.name, stage.parents, {}, folder, {}, {})
    tools = Tools(
        lambda: None, Handle, Handle, Handle, lambda place: None, lambda job, place: None, lambda event: None
    )
    events = EventLog(store, "run")
    yield RunContext("run", plan, manifest, store, tools, events)
    events.close()


def test_an_engine_that_left_is_no_longer_charged_and_started_by_whoever_wants_it(
    context: RunContext,
) -> None:
    now = [0.0]
    context.ledger = Ledger(lambda: now[0])
    first, second = engines = context.engines(None, 2)
    now[0] = 10.0
    context.some_left(engines, 1)
    now[0] = 15.0
    context.keep_engines(engines, [first])
    assert context.ledger.take() == 2 * 10 + 5
    again = context.engines(None, 2)
    assert again[0] is first
    assert again[1] is not second
    now[0] = 16.0
    context.close_engines()
    now[0] = 20.0
    assert context.ledger.take() == 2


def test_each_engine_is_started_once_and_one_at_a_time(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's answers the base and its adapters; a whole model has its own, which serves no adapters."""

    def farm(items: str, recipe: Recipe, *, engines: list[Handle], journal: Any, **rest: Any) -> Any:
        (engine,) = engines
        work = [w for item in read_rows(Path(items).parent, Path(items).stem) for w in recipe.work(item)]
        adapters = {Path(w.request.adapter).name if w.request.adapter else "none" for w in work}
        engine.heard.append(f"ask {engine.model} with {' '.join(adapters)}")
        journal.append([recipe.row(w, [Generation(w.row_key, text=str(w.item["answer"]))]) for w in work])
        return engines

    monkeypatch.setattr(farming, "run_farm", farm)
    folder = tmp_path / "outcomes"
    folder.mkdir()
    context.engine()
    scores = steps.make_outcomes(context, context.plan["outcomes"], folder)["candidates"]
    context.engine()
    context.close_engines()
    base, merged, tuned, full = (context.folder(n).name for n in ("base", "merged", "tuned", "full"))
    assert Handle.heard == [
        f"start {base} for rank 16",
        f"ask {base} with none",
        f"ask {base} with {tuned}",
        f"stop {base}",
        f"start {merged} for rank None",
        f"ask {merged} with none",
        f"stop {merged}",
        f"start {full} for rank None",
        f"ask {full} with none",
        f"stop {full}",
        f"start {base} for rank 16",
        f"stop {base}",
    ]
    assert [*scores] == ["base", "merged", "tuned", "full"]
    found = {(r["expert"], r["expert_key"]) for r in read_outcomes(folder)}
    assert found == {(name, context.plan[name].key) for name in scores}
    assert {s["n"] for s in scores.values()} == {len(list(read_rows(context.folder("prompts"), "test")))}


@pytest.mark.parametrize(("cpus", "workers", "stopped"), [(2, 1, False), (2, 2, True), (4, 3, False)])
def test_an_engine_makes_way_for_workers_that_would_wait_for_what_it_holds(
    cpus: int, workers: int, stopped: bool, context: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus, "GPU": cpus})
    context.make_room(workers)
    context.engine()
    context.make_room(workers)
    assert [said.split()[0] for said in Handle.heard] == ["start", "stop"][: 1 + stopped]
    context.close_engines()
