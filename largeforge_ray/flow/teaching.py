"""How a teach stage makes its dataset: the farm's rows, filtered, in order, and what is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from largeforge_ray.config.filters import Contamination, Duplicate
from largeforge_ray.config.teaching import (
    Endpoint,
    Preferences,
    Prompts,
    Rationales,
    Revisions,
    TeachStage,
)
from largeforge_ray.data import count_rows, read_rows
from largeforge_ray.data.forms import prompt_turns
from largeforge_ray.data.rows import write_split
from largeforge_ray.data.split import is_test_of_part
from largeforge_ray.errors import StageError
from largeforge_ray.flow.context import RunContext
from largeforge_ray.flow.farming import Share, farm
from largeforge_ray.flow.hidden import HiddenStates, hidden_states
from largeforge_ray.flow.plan import PlannedStage, part_of
from largeforge_ray.models.hardware import gpus_each
from largeforge_ray.models.tokenizer import tokenizer_hash
from largeforge_ray.store import RowJournal
from largeforge_ray.teach import products
from largeforge_ray.teach.expansion import ExpansionRecipe
from largeforge_ray.teach.filters import ContaminationIndex, NearDuplicates, build_filters
from largeforge_ray.teach.funnel import Funnel
from largeforge_ray.teach.judging import JudgedRecipe
from largeforge_ray.teach.rationale import RationaleRecipe
from largeforge_ray.teach.recipe import AnswerRecipe
from largeforge_ray.teach.revision import RevisionRecipe, load_constitution
from largeforge_ray.teach.rows import TeacherRowWriter

SCORED_AT_ONCE = 64
Row = dict[str, Any]


def make_rows(context: RunContext, stage: PlannedStage, folder: Path) -> dict[str, Any]:
    """Let the teacher answer, keep what checks and filters accept, and write what is made of it."""
    declared = context.manifest.stage(stage.name)
    assert isinstance(declared, TeachStage)
    part = part_of(declared, "prompts")
    total = count_rows(context.folder(declared.prompts), part) * declared.samples
    hidden = _hidden(context, declared)
    if hidden is not None:
        context.emit(stage.name, "progress", {}, hidden.words(total))
    journal = RowJournal(context.store, stage.key)
    share = Share(
        engines=partial(_engines, context, stage, declared),
        recipe=recipe_for(context, declared),
        items=f"{context.address(declared.prompts)}/{part}.parquet",
        journal=journal,
        total=total,
        finished=lambda: len(journal.index()),
        yields=not isinstance(declared.teacher.model, Endpoint),
    )
    farm(context, stage, [share], ("kept", "dropped"), int(declared.max_failed * total))
    funnel = Funnel(declared.stays)
    rows = journal.in_order(products.in_place, total)
    if isinstance(declared.make, Preferences) and declared.make.reward_model:
        rows = _scored(context, declared.make.reward_model, rows)
    rows = _told(rows, funnel, folder)
    rows = _apart(context, declared, _product(declared, rows), funnel)
    rows = rows if hidden is None else hidden.beside(context, rows)
    parts = write_split(folder, rows, partial(_held_out, declared.split.test))
    if not parts["train"]:
        common = funnel.common() or "none differs enough from the others"
        raise StageError(
            f"stage '{stage.name}': nothing could be made of {total} answers: {common}; show the teacher "
            "examples, raise samples, or look at the check and the filters"
        )
    facts: dict[str, Any] = {
        "form": declared.form,
        "prompts": total // declared.samples,
        "rows": sum(parts.values()),
        **parts,
    }
    if declared.topk or hidden is not None:
        facts["tokenizer"] = tokenizer_hash(context.folder(_whole_model(context, declared)))
        facts["topk"] = declared.topk
    if hidden is not None:
        facts["hidden"] = hidden.facts()
    return facts | funnel.numbers()


def _held_out(share: float, row: Row) -> bool:
    """By what is asked: all that was made of a prompt is on one side."""
    return is_test_of_part(prompt_turns(row["messages"]), share)


def recipe_for(context: RunContext, declared: TeachStage) -> AnswerRecipe:
    """What the stage asks of an item."""
    make = declared.make
    key, adapter = _teacher(context, declared)
    shared: dict[str, Any] = {
        "teacher": declared.teacher,
        "teacher_key": key,
        "sampling": declared.sampling,
        "samples": declared.samples,
        "keep": declared.stays,
        "adapter": adapter,
        # The states belong to the ids that were drawn.
        "topk": 0 if declared.topk is None and declared.hidden is not None else declared.topk,
        "accept": _filters(context, declared),
    }
    if isinstance(make, Rationales):
        return RationaleRecipe(**shared, marker=make.marker)
    if isinstance(make, Preferences) and make.by == "judge":
        return JudgedRecipe(**shared)
    if isinstance(make, Revisions):
        path = context.plan.folder / make.constitution if make.constitution else None
        principles = tuple(load_constitution(path).principles)
        return RevisionRecipe(**shared, principles=principles, rounds=make.rounds)
    if isinstance(make, Prompts):
        pool = tuple(_given(context, declared))
        return ExpansionRecipe(**shared, method=make.method, pool=pool, beside=make.shown, asked=make.asked)
    return AnswerRecipe(**shared)


def _teacher(context: RunContext, declared: TeachStage) -> tuple[str, str | None]:
    """The teacher's key, and its address if it is an adapter."""
    model = declared.teacher.model
    if isinstance(model, Endpoint):
        return f"{model.model} at {model.url}", None
    planned = context.plan[model]
    return planned.key, context.address(model) if planned.artifact_kind == "adapter" else None


def _hidden(context: RunContext, declared: TeachStage) -> HiddenStates | None:
    if declared.hidden is None:
        return None
    _, adapter = _teacher(context, declared)
    return hidden_states(declared, context, _whole_model(context, declared), adapter)


def _whole_model(context: RunContext, declared: TeachStage) -> str:
    """The stage whose model an engine loads for the teacher: an adapter's is the base."""
    model = declared.teacher.model
    assert isinstance(model, str)
    return model if context.plan[model].artifact_kind == "model" else "base"


def _engines(context: RunContext, stage: PlannedStage, declared: TeachStage) -> list[Any]:
    model = declared.teacher.model
    if isinstance(model, Endpoint):
        journal = RowJournal(context.store, stage.key)
        spent = sum(row["usd"] for row in journal.rows()) if model.max_usd else 0.0
        return [context.endpoint(model, spent)]
    whole = _whole_model(context, declared)
    return context.engines(None if whole == "base" else context.address(whole), declared.engines)


def _filters(context: RunContext, declared: TeachStage) -> Any:
    """What the farm's tasks pass every answer through; near duplicates are found where all rows come by."""
    in_farm = [f for f in declared.filters if not isinstance(f, Duplicate)]
    if not in_farm:
        return None
    indexes = [
        ContaminationIndex(chain.from_iterable(_texts(context, ref) for ref in one.against), one.n)
        for one in declared.filters
        if isinstance(one, Contamination)
    ]
    return build_filters(in_farm, indexes)


def _given(context: RunContext, declared: TeachStage) -> Iterator[str]:
    folder = context.folder(declared.prompts)
    for row in read_rows(folder, part_of(declared, "prompts")):
        yield row["messages"][-1]["content"]


def _texts(context: RunContext, ref: str) -> Iterator[str]:
    """Prompts and answers that nothing may train on; of the test part if the reference names none."""
    for row in read_rows(context.folder(ref), ref.partition(".")[2] or "test"):
        turns = [*row["messages"], *(row["chosen"] or ())]
        yield from (turn["content"] for turn in turns if turn["role"] != "system")
        if isinstance(row["answer"], str):
            yield row["answer"]


def _told(rows: Iterable[Row], funnel: Funnel, folder: Path) -> Iterator[Row]:
    """The rows as they come, each counted and written on its way."""
    writer = TeacherRowWriter(folder)
    for row in rows:
        funnel.add(row)
        writer.add(row)
        yield row
    writer.close()


def _product(declared: TeachStage, rows: Iterable[Row]) -> Iterator[Row]:
    make, keep = declared.make, declared.stays
    if isinstance(make, Rationales):
        return products.rationales(rows, keep)
    if isinstance(make, Preferences):
        return products.pairs(rows, make.pairs, make.by)
    if isinstance(make, Revisions):
        return products.revised(rows, keep, make.pairs)
    if isinstance(make, Prompts):
        return products.prompts(rows, keep)
    return products.chats(rows, keep)


def _scored(context: RunContext, reward_model: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows with the reward model's score of each answer, some at once in a process of its own."""
    import ray

    from largeforge_ray.train.judge import RewardModel

    # It takes an engine's place, and no row is asked for any more.
    context.close_engines()
    actor: Any = ray.remote(RewardModel).options(**context.place.options(), num_cpus=1, num_gpus=gpus_each())
    base, reward = context.address("base"), context.address(reward_model)
    judge = actor.remote(base, reward, "bfloat16", "cuda" if gpus_each() else "cpu")
    with context.phase("reward"), context.ledger.holding(1):
        every = iter(rows)
        while block := list(islice(every, SCORED_AT_ONCE)):
            good = [row for row in block if row["error"] is None]
            answered = [(row["messages"], row["text"]) for row in good]
            for row, score in zip(good, ray.get(judge.scores.remote(answered)), strict=True):
                row["score"] = score
            yield from block
    ray.kill(judge)


def _apart(context: RunContext, declared: TeachStage, rows: Iterable[Row], funnel: Funnel) -> Iterator[Row]:
    """Without near duplicates, where they are filtered; new prompts are never near given ones."""
    wanted = next((f for f in declared.filters if isinstance(f, Duplicate)), None)
    if wanted is None and isinstance(declared.make, Prompts):
        wanted = Duplicate()
    if wanted is None:
        yield from rows
        return
    near = NearDuplicates(wanted.threshold, wanted.ngram)
    if isinstance(declared.make, Prompts):
        for text in _given(context, declared):
            near.seen(text)
    for row in rows:
        # With what was asked: a short answer may be right for many prompts.
        said = [*row["messages"], *(row.get("chosen") or ())][-2:]
        if near.seen("\n".join(turn["content"] for turn in said)):
            funnel.near += 1
        else:
            yield row
