"""The chapters of an evaluation's page that compare: accuracy, pairs, calibration, quality over cost.

A part that the summary does not have becomes a sentence that says what would bring it.
"""

from __future__ import annotations

from functools import partial

from largeforge_ray.observe import charts, pictures
from largeforge_ray.observe.cells import (
    ALL_TASKS,
    NOTHING,
    Summary,
    by_expert,
    n_items,
    number,
    p_value,
    shared_count,
    signed_span,
    span,
    task_name,
)
from largeforge_ray.observe.data import Interval
from largeforge_ray.observe.sections import Block, Cell, Picture, Said, Section, Table
from largeforge_ray.observe.svg import figure
from largeforge_ray.observe.words import count, duration, percent, signed_points

NOISE = "no difference beyond noise"
"""The verdict of a comparison that found nothing."""
BINS = 10


def scores(summary: Summary) -> Section:
    """Experts by tasks, the best of each row marked, and what is as good."""
    experts, overall = summary["experts"], summary["overall"]
    whiskers = [
        charts.Whisker(
            name,
            Interval(overall[name]["accuracy"], overall[name]["low"], overall[name]["high"]),
            f"{percent(overall[name]['accuracy'])} {span(overall[name])}",
            "expert",
        )
        for name in experts
    ]
    label = "Mean over tasks: " + "; ".join(f"{one.label} {one.shown}" for one in whiskers)
    low, high = min(one.interval.low for one in whiskers), max(one.interval.high for one in whiskers)
    draw = partial(charts.whisker_chart, whiskers, label=label, low=low, high=high)
    rows = [_score_row(summary, task, metric_of(found), found) for task, found in summary["tasks"].items()]
    rows.append(_score_row(summary, ALL_TASKS, "mean of tasks", overall))
    caption = "Accuracy [interval], n items. ★ best of its row; ≈ no difference beyond noise from the best."
    blocks: list[Block] = [
        Picture(figure(draw), "Mean over tasks, each task counted the same; whiskers are its interval."),
        Table(caption, ("Task", *experts), tuple(rows)),
    ]
    even = [(task, leaders(summary, task)) for task in (*summary["tasks"], ALL_TASKS)]
    level = [f"{task_name(task)} ({', '.join(names)})" for task, names in even if len(names) > 1]
    if level:
        blocks.append(Said(f"No difference beyond noise: {'; '.join(level)}."))
    metrics = [
        (Cell(f"{task}, {name}"), {e: one["scores"].get(name) for e, one in found.items()})
        for task, found in summary["tasks"].items()
        for name in dict.fromkeys(name for one in found.values() for name in one["scores"])
    ] + [
        (Cell(f"{task}, pass@{k}"), {e: (one["pass_at"] or {}).get(k) for e, one in found.items()})
        for task, found in summary["tasks"].items()
        for k in dict.fromkeys(k for one in found.values() for k in one["pass_at"] or ())
    ]
    if metrics:
        blocks.append(by_expert("Every metric", "Metric", experts, metrics, number, folded=True))
    return Section("scores", "Who is better", tuple(blocks))


def leaders(summary: Summary, task: str) -> list[str]:
    """The best expert of a task, then those that are no worse beyond noise; empty for a single expert."""
    found = summary["overall"] if task == ALL_TASKS else summary["tasks"][task]
    names = [name for name in summary["experts"] if name in found]
    if len(names) < 2:
        return []
    best = max(names, key=lambda name: found[name]["accuracy"])
    made = [one for one in summary["comparisons"] or () if one["task"] == task]
    return [best, *(name for name in names if any(_no_worse(one, name, best) for one in made))]


def _no_worse(made: Summary, name: str, best: str) -> bool:
    """Whether the lead of ``best`` over it may be noise."""
    return {made["a"], made["b"]} == {name, best} and made["verdict"] == NOISE


def comparisons(summary: Summary) -> Section:
    found = summary["comparisons"]
    if not found:
        said = "Nothing was compared: name a second candidate in the evaluate stage."
        return Section("comparisons", "Pair by pair", (Said(said, "absent"),))
    rows = tuple(
        (
            Cell(f"{one['a']} − {one['b']}", (f"{task_name(one['task'])}, {n_items(one['n'])}",)),
            Cell(signed_points(one["difference"]), (signed_span(one),)),
            Cell(p_value(one["p_corrected"]), (f"alone {p_value(one['p'])}",)),
            Cell(one["verdict"]),
        )
        for one in found
    )
    caption = (
        "Differences on the same items; p is corrected for all pairs of a task (Holm). In ‘all tasks’ each "
        "task counts the same, whatever its size."
    )
    table = Table(caption, ("Pair", "Difference, points", "p", "Verdict"), rows, left=(3,))
    return Section("comparisons", "Pair by pair", (table,))


def calibration(summary: Summary) -> Section:
    """Bins of one expert are pooled over its tasks for the picture; the tables keep them apart."""
    experts, tasks = summary["experts"], summary["tasks"]
    panels = [panel for name in experts if (panel := _pooled(name, tasks)) is not None]
    if not panels:
        said = "No answer carries a confidence: an expert has to return log-probabilities."
        return Section("calibration", "Calibration", (Said(said, "absent"),))
    draw = partial(pictures.reliability_chart, panels)
    caption = (
        "Share of right answers (up) over mean confidence (across), all tasks together; larger dots are more "
        "answers. Below the dashed line an expert is surer than it should be."
    )
    rows = [
        (Cell(task), {e: None if one["ece"] is None else one for e, one in found.items()})
        for task, found in tasks.items()
    ]
    errors = by_expert(
        "Expected calibration error, and Brier score",
        "Task",
        experts,
        rows,
        lambda one: Cell(f"{one['ece']:.3f}", () if one["brier"] is None else (f"Brier {one['brier']:.3f}",)),
    )
    bins = tuple(
        (
            Cell(task),
            Cell(name),
            Cell(count(b["n"])),
            Cell(percent(b["confidence"])),
            Cell(percent(b["quality"])),
        )
        for task, found in tasks.items()
        for name, one in found.items()
        for b in one["bins"] or ()
    )
    head = ("Task", "Expert", "Answers", "Confidence", "Right")
    every = Table("Every bin", head, bins, left=(1,), folded=True)
    return Section("calibration", "Calibration", (Picture(figure(draw), caption), errors, every))


def _pooled(name: str, tasks: Summary) -> pictures.Reliability | None:
    """The same bins over all tasks: bins are of equal width, so their means can be weighed together."""
    sums: dict[int, tuple[int, float, float]] = {}
    for found in tasks.values():
        for one in (found.get(name) or {}).get("bins") or ():
            place = min(int(one["confidence"] * BINS), BINS - 1)
            n, sure, right = sums.get(place, (0, 0.0, 0.0))
            more = one["n"]
            sums[place] = (n + more, sure + more * one["confidence"], right + more * one["quality"])
    answers = sum(n for n, _, _ in sums.values())
    if not answers:
        return None
    bins = tuple((n, sure / n, right / n) for _, (n, sure, right) in sorted(sums.items()))
    ece = sum(n * abs(sure - right) for n, sure, right in bins) / answers
    return pictures.Reliability(name, ece, bins)


def frontier(summary: Summary) -> Section:
    """Quality over cost of each expert alone and of simple policies, and where quality is lost."""
    found, title = summary["frontier"], "Quality for its cost"
    if not found:
        said = "No items were answered by all of several experts, so no routing can be replayed."
        return Section("frontier", title, (Said(said, "absent"),))
    points = found["points"]
    money = found["unit"] == "cost"
    # Money for one item has too many zeros to read.
    unit, times = ("USD for 1,000 items", 1000) if money else ("seconds for an item", 1)
    spots = [
        pictures.Spot(_policy(p), p["cost"] * times, p["quality"], p["kind"], p["undominated"])
        for p in points
        if p["cost"] is not None
    ]
    blocks: list[Block] = []
    if not money:
        blocks.append(Said("No expert has a price, so an item costs the seconds of its answer."))
    if spots:
        said = (
            "The line joins what nothing cheaper equals. The oracle asks the cheapest expert that is right, "
            "which no router can beat; small dots are cascades, which ask a dearer expert if one is unsure."
        )
        draw = partial(pictures.frontier_chart, spots, unit=unit)
        blocks.append(Picture(figure(draw), said))
    losses = [
        pictures.Loss(_policy(p), p["misrouted"], p["pool_gap"])
        for p in points
        if p["kind"] != "cascade" or p["undominated"]
    ]
    said = (
        "Points of quality lost, first by asking the wrong expert (the regret), then as no expert is right."
    )
    blocks.append(Picture(figure(partial(pictures.loss_bars, losses)), said))
    rows = tuple(
        (
            Cell(("★ " if p["undominated"] else "") + _policy(p)),
            Cell(percent(p["quality"]), (span(p),)),
            number(None if p["cost"] is None else p["cost"] * times),
            Cell(duration(p["seconds"])),
            Cell(percent(p["misrouted"])),
            Cell(percent(p["pool_gap"])),
            Cell(", ".join(f"{name} {share:.3g}" for name, share in p["calls"].items() if share)),
        )
        for p in points
    )
    head = ("Policy", "Quality", unit[0].upper() + unit[1:], "Time", "Regret", "Nobody right", "Calls")
    items = count(found["n"])
    caption = f"Replayed on {items} items; time and calls are those of one. ★ nothing cheaper is as good."
    blocks.append(Table(caption, head, rows, left=(6,)))
    return Section("frontier", title, tuple(blocks))


def _policy(point: Summary) -> str:
    return f"cascade {point['name']}" if point["kind"] == "cascade" else str(point["name"])


def metric_of(found: Summary) -> str:
    """What a task's accuracy is."""
    return ", ".join(dict.fromkeys(one["metric"] or "quality" for one in found.values()))


def _score_row(summary: Summary, task: str, metric: str, found: Summary) -> tuple[Cell, ...]:
    first, *level = leaders(summary, task) or [""]
    items, own = shared_count(found)

    def cell(name: str) -> Cell:
        if name not in found:
            return NOTHING
        mark = "★ " if name == first else "≈ " if name in level else ""
        one = found[name]
        return Cell(mark + percent(one["accuracy"]), (span(one), *own(one)), best=name == first)

    return Cell(task_name(task), (metric, *items)), *(cell(name) for name in summary["experts"])
