"""The chapters of an evaluation's page that take it apart: slices, variants, groups, single items, expense.

A part that the summary does not have becomes a sentence that says what would bring it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from largeforge_ray.observe.cells import (
    NOTHING,
    Summary,
    accuracy,
    by_expert,
    n_items,
    number,
    share,
    shared_count,
    span,
)
from largeforge_ray.observe.sections import Block, Cell, Item, Said, Section, Table
from largeforge_ray.observe.words import count, duration, percent, signed_points


def slices(summary: Summary) -> Section:
    """A heat map for each task that has slices, the hardest slice first."""
    blocks: list[Block] = []
    for task, found in summary["tasks"].items():
        cells = {name: one["slices"] or {} for name, one in found.items()}
        known = [one["accuracy"] for parts in cells.values() for one in parts.values()]
        if not known:
            continue
        names = sorted({part for parts in cells.values() for part in parts}, key=partial(_mean, cells))
        caption = f"{task}: {len(names)} slices, the hardest first; more colour is better"
        rows = tuple(_slice_row(summary["experts"], cells, part, min(known), max(known)) for part in names)
        blocks.append(Table(caption, ("Slice", *summary["experts"]), rows))
    said = "No item has a slice: name a field of the task's rows as `slice`."
    return Section("slices", "Where each is good", tuple(blocks) or (Said(said, "absent"),))


def _slice_row(
    experts: Sequence[str], cells: Mapping[str, Summary], part: str, low: float, high: float
) -> tuple[Cell, ...]:
    found = {name: parts[part] for name, parts in cells.items() if part in parts}
    items, own = shared_count(found)

    def cell(one: Summary) -> Cell:
        warmth = round(100 * (one["accuracy"] - low) / (high - low)) if high > low else 50
        return Cell(percent(one["accuracy"]), own(one), warmth=warmth)

    return Cell(part, items), *(cell(found[name]) if name in found else NOTHING for name in experts)


def _mean(cells: Mapping[str, Summary], part: str) -> float:
    found: list[float] = [parts[part]["accuracy"] for parts in cells.values() if part in parts]
    return sum(found) / len(found)


def robustness(summary: Summary) -> Section:
    blocks: list[Block] = []
    for task, found in summary["tasks"].items():
        variants = dict.fromkeys(name for one in found.values() for name in one["variants"] or ())
        if not variants:
            continue
        rows: list[tuple[Cell, Mapping[str, Any]]] = [(Cell("as asked"), found)]
        rows += [
            (Cell(name), {e: (one["variants"] or {}).get(name) for e, one in found.items()})
            for name in variants
        ]
        worst = {
            e: {"accuracy": one["worst_case"]} for e, one in found.items() if one["worst_case"] is not None
        }
        rows.append((Cell("worst of each item"), worst))
        caption = f"{task}: accuracy on the same items as they were changed, and the points that were lost"
        blocks.append(by_expert(caption, "Variant", summary["experts"], rows, _variant))
    said = "No item was changed: give a task `perturb`, such as [typos, case]."
    return Section("robustness", "When the question changes", tuple(blocks) or (Said(said, "absent"),))


def _variant(one: Summary) -> Cell:
    interval = (f"{span(one)} {n_items(one['n'])}",) if "low" in one else ()
    lost = (f"{signed_points(-one['drop'])} points",) if one.get("drop") is not None else ()
    return Cell(percent(one["accuracy"]), (*lost, *interval))


def fairness(summary: Summary) -> Section:
    blocks: list[Block] = []
    for task, found in summary["tasks"].items():
        groups = dict.fromkeys(name for one in found.values() for name in one["groups"] or ())
        if not groups:
            continue
        rows = [
            (Cell(name), {e: (one["groups"] or {}).get(name) for e, one in found.items()}) for name in groups
        ]
        blocks.append(by_expert(f"{task}: accuracy by group", "Group", summary["experts"], rows, accuracy))
        apart = {e: [g["accuracy"] for g in (one["groups"] or {}).values()] for e, one in found.items()}
        gaps = [f"{e} {(max(a) - min(a)) * 100:.1f}" for e, a in apart.items() if len(a) > 1]
        if gaps:
            blocks.append(Said(f"Points between the best and the worst group: {', '.join(gaps)}."))
    said = "No item belongs to a group: name a field of the task's rows as `group`."
    return Section("fairness", "Groups", tuple(blocks) or (Said(said, "absent"),))


def contamination(summary: Summary) -> Section:
    found = summary["contamination"]
    if not found:
        said = "Training data was not searched for the items: set `contamination` in the evaluate stage."
        return Section("contamination", "Seen in training", (Said(said, "absent"),))
    rows = tuple(
        (
            Cell(task),
            Cell(name),
            Cell(count(one["marked"])),
            share(one["accuracy_with"]),
            share(one["accuracy_without"]),
        )
        for task, experts in found.items()
        for name, one in experts.items()
    )
    caption = (
        "Items that share a passage with an expert's training data, and its accuracy with and without them"
    )
    head = ("Task", "Expert", "Marked", "With", "Without")
    return Section("contamination", "Seen in training", (Table(caption, head, rows, left=(1,)),))


def items(summary: Summary) -> Section:
    blocks = tuple(
        Item(
            one["item_id"],
            one["task"],
            one.get("prompt"),
            tuple((name, said["answer"] or "", said["quality"]) for name, said in one["answers"].items()),
        )
        for one in summary["worst_items"] or ()
    )
    said = "No item is shown: every expert answered every item perfectly, or none was answered."
    return Section("items", "The hardest items, side by side", blocks or (Said(said, "absent"),))


def efficiency(summary: Summary) -> Section:
    rows = tuple(
        (
            Cell(name, (task,)),
            Cell(count(one["prompt_tokens"])),
            Cell(count(one["completion_tokens"])),
            Cell(duration(one["seconds"])),
            number(one["tokens_per_s"]),
            number(one["cost"]),
            Cell(count(one["errors"])),
        )
        for task, found in summary["tasks"].items()
        for name, one in found.items()
    )
    totals = tuple(
        (Cell(name), Cell(count(one["n"])), Cell(duration(one["seconds"])), number(one["cost"]))
        for name, one in summary["overall"].items()
    )
    failed = sum(one["errors"] for found in summary["tasks"].values() for one in found.values())
    warning = (Said(f"{count(failed)} answers failed and count as wrong.", "warning"),) if failed else ()
    head = ("Expert", "Prompt tokens", "Completion tokens", "Time", "Tokens/s", "USD", "Errors")
    return Section(
        "efficiency",
        "Tokens, time and money",
        (
            *warning,
            Table("All tasks", ("Expert", "Items", "Time", "USD"), totals),
            Table("Task by task; time is the sum over answers, however many ran at once", head, rows),
        ),
    )
