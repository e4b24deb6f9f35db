"""The evaluate stage: every candidate answers every item once, and what that says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from largeforge_ray.config.evaluating import EvaluateStage
from largeforge_ray.config.teaching import Endpoint, Price
from largeforge_ray.data import read_rows
from largeforge_ray.evaluate.contamination import contaminated, training_texts, with_and_without
from largeforge_ray.evaluate.gather import of_dataset, task_items
from largeforge_ray.evaluate.items import KINDS, items_path, read_items, write_items
from largeforge_ray.evaluate.outcomes import OutcomeRecipe, key_of_endpoint, prompt_of, write_outcomes
from largeforge_ray.evaluate.summary import summarise
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.farming import Share, farm
from largeforge_ray.flow.plan import PlannedStage, part_of
from largeforge_ray.models.spend import cost_usd
from largeforge_ray.store import RowJournal, artifact_key

Row = dict[str, Any]
KEPT = "outcomes"
"""Where a store keeps what each expert has answered, for every stage that asks the same."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who answers. ``model`` is the address of a whole model, None for the base, on which ``adapter`` is.

    ``key`` stands for what answers in the outcomes' keys; ``drafting`` is what an engine is told of a draft.
    """

    name: str
    key: str
    model: str | None
    adapter: str | None
    drafting: Mapping[str, Any]
    endpoint: Endpoint | None = None


def make_outcomes(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Ask what no journal holds, judge it, and write outcomes, items and ``evaluation.json``."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, EvaluateStage)
    with context.phase("items"):
        counts = write_items(folder, _gather(context, declared))
    for task, number in (stage.config.get("tasks") or {"duplicates": {}})["duplicates"].items():
        if number:
            said = f"{number} documents of {task} ask the same as an earlier one and are left out"
            context.emit(stage.name, "progress", {}, said)
    shares = _shares(context, stage, declared, folder, counts)
    farm(context, stage, [share for _, share in shares], ("right", "wrong"))
    context.end_work(stage)
    with context.phase("statistics"):
        marked = _contaminated(context, declared, folder, counts)
        rows = (
            row | _mark(row, marked) | _price(row, declared.prices)
            for kind, share in shares
            for row in _outcomes_of(share, read_items(folder, kind))
        )
        written = write_outcomes(folder, rows, _items(folder, counts))
        prompts = {each["item_hash"]: prompt_of(each) for each in _items(folder, counts)}
        summary = summarise(
            written,
            confidence=declared.confidence,
            seed=declared.seed,
            baseline="base" if "base" in declared.names else None,
            prompts=prompts,
        )
        summary["contamination"] = with_and_without(written) if marked else None
    (folder / "evaluation.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return _metrics(summary, declared.names)


def _gather(context: RunContext, declared: EvaluateStage) -> Iterator[Row]:
    yield from task_items(declared.tasks, context.plan.folder)
    if declared.items is not None:
        name, part = declared.items.split(".")[0], part_of(declared, "items")
        for row in read_rows(context.folder(declared.items), part):
            yield of_dataset(row, name, declared.max_tokens)


def _items(folder: Path, counts: Mapping[str, int]) -> Iterator[Row]:
    for kind in KINDS:
        if counts[kind]:
            yield from read_items(folder, kind)


def _candidates(context: RunContext, declared: EvaluateStage) -> list[Candidate]:
    """In an order that starts each engine once: the base's, then those of models, then endpoints."""
    made = [_candidate(context, each) for each in declared.named]
    models = [candidate.model for candidate in made]
    return sorted(
        made,
        key=lambda c: (
            c.endpoint is not None,
            c.model is not None,
            models.index(c.model),
            bool(c.drafting),
        ),
    )


def _candidate(context: RunContext, given: Any) -> Candidate:
    if given.endpoint is not None:
        key = key_of_endpoint(given.endpoint.url, given.endpoint.model)
        return Candidate(given.name, key, None, None, {}, given.endpoint)
    planned, model, adapter = context.plan[given.model], None, None
    if planned.artifact_kind == "adapter":
        adapter = context.address(given.model)
    elif given.model != "base":
        model = context.address(given.model)
    if given.speculation is None:
        return Candidate(given.name, planned.key, model, adapter, {})
    from largeforge_ray.models.speculation import draft_source

    said, source = given.speculation.model_dump(mode="json"), draft_source(given.speculation)
    draft = context.store.address(context.store.get(source)) if source else None
    drafting = {"speculation": given.speculation, "draft_dir": draft}
    return Candidate(given.name, artifact_key("model", said, [planned.key]), model, adapter, drafting)


def _shares(
    context: RunContext, stage: PlannedStage, declared: EvaluateStage, folder: Path, counts: Mapping[str, int]
) -> list[tuple[str, Share]]:
    """A share for each kind of item and candidate; those of one kind of actor follow one another."""
    shares = []
    # One expert after the other: a batch with a single adapted request runs at the adapter's pace.
    candidates = _candidates(context, declared)
    for kind in KINDS:
        if not counts[kind]:
            continue
        items = context.shared(stage, items_path(folder, kind))
        for candidate in candidates:
            recipe = OutcomeRecipe(
                candidate.name, candidate.key, candidate.adapter, declared.seed, declared.drawn
            )
            journal = RowJournal(context.store, candidate.key, KEPT)
            wanted = [w.row_key for each in read_items(folder, kind) for w in recipe.work(each)]
            share = Share(
                engines=_asked(context, declared, candidate, kind),
                recipe=recipe,
                items=items,
                journal=journal,
                total=len(wanted),
                finished=partial(_finished, journal, wanted),
                yields=candidate.endpoint is None,
            )
            shares.append((kind, share))
    return shares


def _finished(journal: RowJournal, wanted: Sequence[str]) -> int:
    there = journal.index()
    return sum(key in there for key in wanted)


def _asked(
    context: RunContext, declared: EvaluateStage, candidate: Candidate, kind: str
) -> Callable[[], Sequence[Any]]:
    if candidate.endpoint is not None:
        return partial(_endpoint, context, candidate.endpoint, RowJournal(context.store, candidate.key, KEPT))
    if kind == "choice":
        return partial(context.scorers, candidate.model, declared.scorers)
    return partial(context.engines, candidate.model, declared.engines, **candidate.drafting)


def _endpoint(context: RunContext, endpoint: Endpoint, journal: RowJournal) -> list[Any]:
    spent = sum(row["cost"] for row in journal.rows()) if endpoint.max_usd else 0.0
    return [context.endpoint(endpoint, spent)]


def _outcomes_of(share: Share, items: Iterable[Row]) -> Iterator[Row]:
    """A share's rows under its expert's name: the journal may hold more, and knows the key alone."""
    recipe = share.recipe
    assert isinstance(recipe, OutcomeRecipe)
    wanted = {work.row_key for each in items for work in recipe.work(each)}
    for row in share.journal.rows():
        if row["row_key"] in wanted:
            yield row | {"expert": recipe.expert}


def _contaminated(
    context: RunContext, declared: EvaluateStage, folder: Path, counts: Mapping[str, int]
) -> dict[str, frozenset[str]]:
    """By candidate, the hashes of items that stand in what it was trained on, where that is known."""
    if declared.contamination is None:
        return {}
    artifacts = {c.name: context.artifact(c.model) for c in declared.named if c.endpoint is None}
    return {
        name: frozenset(
            contaminated(
                _items(folder, counts), training_texts(context.store, artifact), declared.contamination.n
            )
        )
        for name, artifact in artifacts.items()
        if artifact.key != context.plan["base"].key
    }


def _price(row: Row, prices: Mapping[str, Price]) -> dict[str, float]:
    """What an answer costs where its expert has a price, which no cached row knows."""
    price = prices.get(row["expert"])
    return {"cost": cost_usd(price, row["prompt_tokens"], row["completion_tokens"])} if price else {}


def _mark(row: Row, marked: Mapping[str, frozenset[str]]) -> dict[str, bool | None]:
    """Whether its item, perturbed or not, is one of those; None where nobody can say."""
    known = marked.get(row["expert"])
    return {"contaminated": None if known is None else row["origin"] in known}


def _metrics(summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What the run's lines and the plan's readers show: the overall scores, and the gains over the base."""
    candidates = {
        name: {k: overall[k] for k in ("accuracy", "low", "high", "n")}
        | {"errors": sum(of[name]["errors"] for of in summary["tasks"].values() if name in of)}
        for name, overall in ((name, summary["overall"][name]) for name in names)
    }
    gains = {
        one["a"]: {"against": one["b"], "gain": one["difference"], "low": one["low"], "high": one["high"]}
        for one in summary["comparisons"]
        if one["task"] == "all" and one["b"] == "base"
    }
    read = ("prompt_tokens", "completion_tokens")
    tokens = sum(cell[name] for of in summary["tasks"].values() for cell in of.values() for name in read)
    return {"candidates": candidates, "gains": gains, "tokens": tokens}
