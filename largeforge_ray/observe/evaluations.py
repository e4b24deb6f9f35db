"""The page of an evaluation: HTML that opens anywhere, and the same as Markdown.

    summary = json.loads((folder / "evaluation.json").read_text())
    render_evaluation(summary, title="Evaluation ‘outcomes’", about={"Run": "20260102-090000-ab12"})

Experts by tasks with their intervals, pairs, calibration, quality for its cost, slices, changed questions,
groups, items seen in training, the hardest items, tokens and money. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from largeforge_ray.errors import DataError
from largeforge_ray.observe import breakdowns, chapters
from largeforge_ray.observe.cells import ALL_TASKS, Summary, span
from largeforge_ray.observe.sections import Section, markdown
from largeforge_ray.observe.templates import environment
from largeforge_ray.observe.words import Headline, percent

CHAPTERS = (
    chapters.scores,
    chapters.comparisons,
    chapters.calibration,
    chapters.frontier,
    breakdowns.slices,
    breakdowns.robustness,
    breakdowns.fairness,
    breakdowns.contamination,
    breakdowns.items,
    breakdowns.efficiency,
)
KEYS = {
    "summary": "experts tasks overall comparisons worst_items frontier contamination",
    "task": "metric n accuracy low high errors ece brier bins scores prompt_tokens completion_tokens seconds "
    "cost tokens_per_s worst_case variants groups slices pass_at",
    "overall": "accuracy low high n cost seconds",
    "comparison": "task a b n difference low high p p_corrected verdict",
    "item": "task item_id answers",
    "frontier": "unit n points",
    "point": "kind name quality low high cost seconds calls misrouted pool_gap undominated",
}
"""What each part has to have. A value may be None where nothing was measured."""


def render_evaluation(summary: Summary, *, title: str, about: Mapping[str, str] | None = None) -> str:
    """One HTML document that loads nothing else; ``about`` are facts below the headline, by name.

    Raises:
        DataError: the summary lacks a key, naming it and its place.
    """
    made = evaluation_sections(summary)
    page = environment().get_template("evaluation.html.j2")
    return page.render(title=title, about=about or {}, headline=evaluation_headline(summary), sections=made)


def markdown_evaluation(summary: Summary, *, title: str, about: Mapping[str, str] | None = None) -> str:
    """The same as Markdown; pictures are left out, and their numbers stand in the tables.

    Raises:
        DataError: as for ``render_evaluation``.
    """
    made = evaluation_sections(summary)
    headline = evaluation_headline(summary)
    return markdown(title, f"{headline.title}. {headline.lead}", about or {}, made)


def evaluation_sections(summary: Summary) -> tuple[Section, ...]:
    """What the page says, in order.

    Raises:
        DataError: as for ``render_evaluation``.
    """
    _check(summary)
    return tuple(chapter(summary) for chapter in CHAPTERS)


def evaluation_headline(summary: Summary) -> Headline:
    """Who is best over all tasks, or that nobody is beyond noise."""
    experts, tasks = summary["experts"], len(summary["tasks"])
    over = f"{tasks} task{'s' if tasks != 1 else ''}"
    best, *level = chapters.leaders(summary, ALL_TASKS) or experts[:1]
    numbers = summary["overall"][best]
    lead = f"‘{best}’ scores {percent(numbers['accuracy'])} {span(numbers)} over {over}."
    if len(experts) == 1:
        return Headline(f"‘{best}’ on {over}", lead, "open")
    if level:
        names = ", ".join(f"‘{name}’" for name in level)
        return Headline(
            "No expert is best beyond noise", f"{lead} No difference beyond noise from it: {names}.", "open"
        )
    return Headline(f"‘{best}’ is the best of {len(experts)} experts", lead, "good")


def _check(summary: Summary) -> None:
    _need(summary, "summary", "the file")
    if not summary["experts"] or not summary["tasks"]:
        raise DataError("evaluation.json has no experts or no tasks; evaluate at least one of each")
    for name in summary["experts"]:
        _need(summary["overall"].get(name), "overall", f"overall.{name}")
    for task, found in summary["tasks"].items():
        for name, one in found.items():
            _need(one, "task", f"tasks.{task}.{name}")
    _need_each(summary["comparisons"], "comparison", "comparisons")
    _need_each(summary["worst_items"], "item", "worst_items")
    if summary["frontier"]:
        _need(summary["frontier"], "frontier", "frontier")
        _need_each(summary["frontier"]["points"], "point", "frontier.points")


def _need_each(parts: Iterable[Any] | None, kind: str, where: str) -> None:
    for number, one in enumerate(parts or ()):
        _need(one, kind, f"{where}[{number}]")


def _need(part: Any, kind: str, where: str) -> None:
    keys = KEYS[kind].split()
    missing = [key for key in keys if not isinstance(part, Mapping) or key not in part]
    if missing:
        raise DataError(
            f"evaluation.json lacks {', '.join(map(repr, missing))} in {where}, and the report shows it; "
            "evaluate again with this version"
        )
