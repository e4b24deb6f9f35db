"""From ReportData to the page: charts are drawn, tables laid out, and the template filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from largeforge_ray.observe import charts, words
from largeforge_ray.observe.dag import lineage_picture
from largeforge_ray.observe.data import Evaluation, ReportData, StageView
from largeforge_ray.observe.evaluations import evaluation_sections
from largeforge_ray.observe.items import GROUPS
from largeforge_ray.observe.routers import cost_chart
from largeforge_ray.observe.svg import Figure, figure
from largeforge_ray.observe.templates import environment

GROUP_TITLES = {"improved": "Improved", "worse": "Got worse", "unsolved": "Still wrong"}


@dataclass(frozen=True, slots=True)
class TimeRow:
    """A line of the time table; ``share`` is of the run's total, 0 to 1."""

    stage: str
    phase: str
    seconds: float | None
    share: float
    state: str


def render(data: ReportData) -> str:
    """The report as one HTML document that loads nothing else. Pure: the same data, the same page."""
    page = environment().get_template("report.html.j2")
    return page.render(
        data=data,
        headline=words.headline(data),
        losses=[(curve, figure(partial(charts.loss_chart, curve))) for curve in data.losses],
        window=charts.smoothing_window,
        evaluations=[
            (
                one,
                _accuracy_figure(one),
                _gain_figure(one),
                evaluation_sections(one.summary) if one.summary else (),
            )
            for one in data.evaluations
        ],
        routers=[(one, figure(partial(cost_chart, one))) for one in data.routers],
        funnels=[(one, figure(partial(charts.funnel_chart, one))) for one in data.funnels],
        timeline=_timeline(data),
        time_rows=time_rows(data.stages, data.total_s),
        lineage=figure(partial(lineage_picture, data.lineage)) if data.lineage.nodes else None,
        comparisons=[(one, _grouped(one.pairs)) for one in data.comparisons],
        group_titles=GROUP_TITLES,
        cost_names=list(dict.fromkeys(name for cost in data.costs for name in cost.values)),
    )


def time_rows(stages: Sequence[StageView], total_s: float | None) -> list[TimeRow]:
    """Each stage, then its phases, then what no phase accounts for."""
    rows = []
    for stage in stages:
        spent_s = stage.seconds if stage.state != "cached" else None
        rows.append(TimeRow(stage.name, "", spent_s, _share(spent_s, total_s), stage.state))
        rows += [
            TimeRow(stage.name, name, seconds, _share(seconds, total_s), stage.state)
            for name, seconds in stage.phases
        ]
        rest_s = (spent_s or 0.0) - sum(seconds for _, seconds in stage.phases)
        if stage.phases and rest_s >= 0.05:
            rows.append(TimeRow(stage.name, "everything else", rest_s, _share(rest_s, total_s), stage.state))
    return rows


def _share(seconds: float | None, total_s: float | None) -> float:
    return min(seconds / total_s, 1.0) if seconds and total_s else 0.0


def _timeline(data: ReportData) -> Figure | None:
    total_s = data.total_s
    if total_s is None:
        return None
    return figure(lambda width: charts.timeline_chart(data.stages, total_s, width))


def _accuracy_figure(evaluation: Evaluation) -> Figure:
    reference = {gain.against for gain in evaluation.gains}
    rows = [
        charts.Whisker(
            one.name,
            one.accuracy,
            f"{words.percent(one.accuracy.value)}  "
            f"({words.percent(one.accuracy.low)} – {words.percent(one.accuracy.high)})",
            "base" if one.name in reference else "expert",
        )
        for one in evaluation.candidates
    ]
    label = f"Accuracy in stage {evaluation.stage}: " + "; ".join(f"{row.label} {row.shown}" for row in rows)
    return figure(lambda width: charts.whisker_chart(rows, width, label, 0.0, 1.0))


def _gain_figure(evaluation: Evaluation) -> Figure | None:
    if not evaluation.gains:
        return None
    rows = [
        charts.Whisker(
            f"{gain.expert} − {gain.against}",
            gain.interval,
            f"{words.signed_points(gain.interval.value)}  "
            f"({words.signed_points(gain.interval.low)} to {words.signed_points(gain.interval.high)})",
            "good" if gain.interval.low > 0 else "bad" if gain.interval.high < 0 else "open",
        )
        for gain in evaluation.gains
    ]
    low = min(0.0, *(gain.interval.low for gain in evaluation.gains))
    high = max(0.0, *(gain.interval.high for gain in evaluation.gains))
    label = "Paired gain in points: " + "; ".join(f"{row.label} {row.shown}" for row in rows)
    return figure(lambda width: charts.whisker_chart(rows, width, label, low, high, zero=True))


def _grouped(pairs: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    groups = [(group, [pair for pair in pairs if pair.group == group]) for group in GROUPS]
    return [(group, found) for group, found in groups if found]
