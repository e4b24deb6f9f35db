"""The report's charts. Each is drawn for a width, so a phone gets its own layout instead of small text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from largeforge_ray.observe import svg
from largeforge_ray.observe.data import Funnel, Interval, LossCurve, StageView
from largeforge_ray.observe.words import count, duration

MOST_POINTS = 240
"""Drawn points of a curve; more would only add bytes."""
SMOOTH_FROM = 24
LABEL_PX = 196
CHARACTER_PX = 7.4
"""Mean width of a character of 13 px text, on the wide side so that nothing overflows."""


@dataclass(frozen=True, slots=True)
class Whisker:
    """One row of a dot-and-whisker chart; ``tone`` picks its colour."""

    label: str
    interval: Interval
    shown: str
    tone: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with their label at the left, or above where there is no room."""

    width: float
    stacked: bool

    @property
    def left(self) -> float:
        return 16 if self.stacked else LABEL_PX

    @property
    def height(self) -> float:
        return 46 if self.stacked else 32

    def centre(self, index: int) -> float:
        """The y of a row's bar or dot."""
        return index * self.height + (30 if self.stacked else 18)

    def label(self, index: int, content: str, beside: str = "") -> Markup:
        """The row's name, cut where a stacked row's value (``beside``) begins."""
        room = self.width - len(beside) * CHARACTER_PX if self.stacked else self.left
        shown = svg.clip(content, int((room - 16) / CHARACTER_PX))
        y = self.centre(index) + (-14 if self.stacked else 4.5)
        return svg.element("text", svg.title(content), shown, x=0, y=y, class_="label")

    def value(self, index: int, content: str) -> Markup:
        at = self.centre(index)
        return svg.text(self.width, at - 14 if self.stacked else at + 4.5, content, "value", "end")


def laid_out(width: float) -> Rows:
    """Stacked on a phone."""
    return Rows(width, stacked=width < svg.WIDE * 0.7)


def loss_chart(curve: LossCurve, width: float) -> Markup:
    """Loss over steps, on held-out rows too if it was measured; a running mean is drawn over a long noisy
    curve."""
    height = 260.0 if width >= svg.WIDE else 220.0
    left, right, top, bottom = 44.0, width - 10.0, 26.0, height - 38.0
    steps, losses = [step for step, _ in curve.points], [loss for _, loss in curve.points]
    both = [*losses, *(loss for _, loss in curve.held_out)]
    y_ticks = svg.ticks(min(both), max(both), 5)
    x_ticks = [tick for tick in svg.ticks(0, max(steps), 6 if width >= svg.WIDE else 4) if tick <= max(steps)]
    x = svg.Scale(0, max(steps), left, right)
    y = svg.Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [svg.text(0, 12, "loss, nats per token", "axis")]
    parts += svg.grid(x, y, x_ticks, y_ticks, left=left, right=right, bottom=bottom)
    parts += [
        svg.line(left, bottom, right, bottom, "frame"),
        svg.text(right, height - 4, "step", "axis", "end"),
    ]
    parts += [
        svg.element("g", svg.title(said), svg.line(x(step), top, x(step), bottom, "mark"))
        for step, said in curve.marks
    ]
    drawn = _thinned(curve.points)
    smooth = smoothed(curve.points)
    parts.append(svg.polyline([(x(a), y(b)) for a, b in drawn], "curve faint" if smooth else "curve"))
    if smooth:
        parts.append(svg.polyline([(x(a), y(b)) for a, b in _thinned(smooth)], "curve"))
    few = len(drawn) <= SMOOTH_FROM
    parts += [
        _dot(x(a), y(b), 3 if few else 5, "dot" if few else "dot hidden", f"step {a:g}: loss {b:.4f}")
        for a, b in drawn
    ]
    if len(curve.held_out) > 1:
        parts.append(svg.polyline([(x(a), y(b)) for a, b in curve.held_out], "curve held"))
    parts += [
        _dot(x(a), y(b), 4, "dot held", f"held-out rows, step {a:g}: loss {b:.4f}") for a, b in curve.held_out
    ]
    label = (
        f"Training loss of stage {curve.stage}: from {losses[0]:.3f} at step {steps[0]:g} "
        f"to {losses[-1]:.3f} at step {steps[-1]:g}"
    )
    if curve.held_out:
        label += f"; on held-out rows from {curve.held_out[0][1]:.3f} to {curve.held_out[-1][1]:.3f}"
    return svg.picture(width, height, label, *parts)


def smoothing_window(points: int) -> int:
    """How many steps the running mean of a curve takes in (odd); 0 if the curve is short enough to read."""
    return 0 if points < SMOOTH_FROM else max(5, points // 12 | 1)


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of each step and its neighbours on both sides, fewer at the ends; empty for a short curve."""
    reach = smoothing_window(len(points)) // 2
    if not reach:
        return []
    sums = [0.0, *accumulate(loss for _, loss in points)]
    means = []
    for index, (step, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)  # symmetric, so that the ends do not lag
        means.append((step, (sums[index + near + 1] - sums[index - near]) / (2 * near + 1)))
    return means


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS: both ends, and each stretch's lowest and highest, so that no spike is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = -(-len(points) // (MOST_POINTS // 2 - 1))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept |= {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
    return sorted(kept)


def whisker_chart(
    rows: Sequence[Whisker], width: float, label: str, low: float, high: float, zero: bool = False
) -> Markup:
    """Values with their intervals over a percent axis from low to high; ``zero`` marks no difference."""
    layout = laid_out(width)
    ends = svg.ticks(low, high, 5 if layout.stacked else 8)
    # The widest value has to end before the axis begins, or a dot at 100% lies on it.
    beside = max(len(row.shown) for row in rows) * CHARACTER_PX + 16
    right = width - (18 if layout.stacked else beside)
    x = svg.Scale(ends[0], ends[-1], layout.left, right)
    bottom = layout.centre(len(rows) - 1) + 18
    parts = []
    for tick in ends:
        at_zero = zero and abs(tick) < 1e-9
        parts += [
            svg.line(x(tick), 4, x(tick), bottom, "frame" if at_zero else "grid"),
            svg.text(x(tick), bottom + 16, _tick(tick, zero), "tick", "middle"),
        ]
    for index, row in enumerate(rows):
        at, span = layout.centre(index), row.interval
        start, end = x(span.low), x(span.high)
        parts += [
            layout.label(index, row.label, row.shown),
            layout.value(index, row.shown),
            svg.line(start, at, end, at, f"whisker {row.tone}"),
            svg.line(start, at - 5, start, at + 5, f"whisker {row.tone}"),
            svg.line(end, at - 5, end, at + 5, f"whisker {row.tone}"),
            _dot(x(span.value), at, 5.5, f"point {row.tone}", f"{row.label}: {row.shown}"),
        ]
    return svg.picture(width, bottom + 24, label, *parts)


def _tick(value: float, signed: bool) -> str:
    shown = f"{value * 100:.3g}"
    if not signed:
        return f"{shown}%"
    return "0" if abs(value) < 1e-9 else shown.replace("-", "−") if value < 0 else f"+{shown}"


def funnel_chart(funnel: Funnel, width: float) -> Markup:
    """Bars from the prompts to what was kept, then what was lost and why."""
    rows = _funnel_rows(funnel)
    layout = laid_out(width)
    x = svg.Scale(0, max((number for _, number, _ in rows), default=0) or 1, layout.left, width - 76)
    parts = []
    for index, (name, number, tone) in enumerate(rows):
        at, end, said = layout.centre(index), x(number), svg.title(f"{name}: {number:,}")
        parts += [
            layout.label(index, name),
            svg.box(layout.left, at - 9, max(end - layout.left, 1.5), 18, f"bar {tone}", said),
            svg.text(max(end, layout.left + 1.5) + 8, at + 4.5, count(number), "value"),
        ]
    numbers = ", ".join(f"{name} {number:,}" for name, number, _ in rows)
    label = f"Teacher funnel of stage {funnel.stage}: {numbers}"
    return svg.picture(width, layout.centre(len(rows) - 1) + 16, label, *parts)


def _funnel_rows(funnel: Funnel) -> list[tuple[str, int, str]]:
    rows = [("prompts", funnel.prompts, "neutral")] if funnel.prompts else []
    rows += [("samples", funnel.samples, "neutral"), ("kept", funnel.kept, "good")]
    if funnel.duplicates:
        rows.append(("kept, without duplicates", funnel.kept - funnel.duplicates, "good"))
    if funnel.near_duplicates:
        rows.append(("near duplicates", funnel.near_duplicates, "warn"))
    if funnel.made is not None:
        rows.append(("rows made", funnel.made, "good"))
    rows += [("dropped", funnel.dropped, "warn"), ("failed", funnel.failed, "bad")]
    return rows


def timeline_chart(stages: Sequence[StageView], total_s: float, width: float) -> Markup:
    """When each stage ran, with its phases as shades; a diamond marks a stage that was already there."""
    layout = laid_out(width)
    total_s = max(total_s, 1e-3)
    marks = svg.time_ticks(total_s, 4 if layout.stacked else 7)
    right = width - 18 if layout.stacked else width - 100
    x = svg.Scale(0, total_s, layout.left, right)
    bottom = layout.centre(len(stages) - 1) + 18
    parts = []
    for tick, name in marks:
        parts += [
            svg.line(x(tick), 4, x(tick), bottom, "grid"),
            svg.text(x(tick), bottom + 16, name, "tick", "middle"),
        ]
    for index, stage in enumerate(stages):
        said = _outcome(stage)
        parts += [layout.label(index, stage.name, said), layout.value(index, said)]
        parts += _bars(stage, x, layout.centre(index))
        if stage.state == "cached" and stage.cached_at_s is not None:
            said = f"{stage.name}: already in the store"
            parts.append(_diamond(x(stage.cached_at_s), layout.centre(index), said))
    label = "Timeline: " + ", ".join(f"{stage.name} {_outcome(stage)}" for stage in stages)
    return svg.picture(width, bottom + 24, label, *parts)


def _bars(stage: StageView, x: svg.Scale, at: float) -> list[Markup]:
    bars = []
    for span in stage.spans:
        said = f"{stage.name}, {span.outcome}: {duration(span.start_s)} to {duration(span.end_s)}"
        start, end = x(span.start_s), x(span.end_s)
        bars.append(svg.box(start, at - 9, max(end - start, 2), 18, f"span {span.outcome}", svg.title(said)))
    spent_s = sum(seconds for _, seconds in stage.phases)
    if not stage.spans or spent_s <= 0 or spent_s > (stage.spans[-1].end_s - stage.spans[-1].start_s) * 1.02:
        return bars  # phases that overlap in time cannot be laid end to end
    begin_s = stage.spans[-1].start_s
    for index, (name, seconds) in enumerate(stage.phases):
        start, end = x(begin_s), x(begin_s + seconds)
        said = f"{stage.name}, {name}: {duration(seconds)}"
        shade = f"phase shade{index % 3}"
        bars.append(svg.box(start, at - 9, end - start, 18, shade, svg.title(said), radius=1))
        begin_s += seconds
    return bars


def _dot(x: float, y: float, radius: float, class_: str, said: str) -> Markup:
    return svg.element("circle", svg.title(said), cx=x, cy=y, r=radius, class_=class_)


def _diamond(x: float, y: float, said: str) -> Markup:
    points = f"{x:.1f},{y - 7:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 7:.1f} {x - 7:.1f},{y:.1f}"
    return svg.element("polygon", svg.title(said), points=points, class_="cached")


def _outcome(stage: StageView) -> str:
    return duration(stage.seconds) if stage.state == "finished" else stage.state
