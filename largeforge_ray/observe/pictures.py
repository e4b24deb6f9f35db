"""The pictures of an evaluation: reliability diagrams, quality over cost, and where quality is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from markupsafe import Markup

from largeforge_ray.observe import svg
from largeforge_ray.observe.charts import CHARACTER_PX, laid_out
from largeforge_ray.observe.words import percent

TEXT_PX = 16
BOLD_PX = CHARACTER_PX * 1.25
LARGEST_DOT_PX = 7.0
TONES = {"expert": "expert", "bound": "good", "baseline": "", "cascade": "expert"}
"""The class of each kind's dots; kinds that come first are named first."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Reliability:
    """One expert's bins as (answers, mean confidence, mean quality), and their ECE."""

    name: str
    ece: float
    bins: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True)
class Spot:
    """A policy's cost and quality for one item; ``kind`` is expert, baseline, bound or cascade.

    ``best`` if nothing that is cheaper is as good.
    """

    name: str
    cost: float
    quality: float
    kind: str
    best: bool


@dataclass(frozen=True, slots=True)
class Loss:
    """Shares of items lost: another expert would have been right, and nobody was."""

    name: str
    misrouted: float
    pool_gap: float


def reliability_chart(panels: Sequence[Reliability], width: float) -> Markup:
    """One square for each expert: quality over confidence; on the dashed line confidence is deserved."""
    columns = 3 if width >= svg.WIDE else 2
    gap, left, top = 22.0, 30.0, 44.0
    side = (width - (columns - 1) * gap) / columns - left - 8
    down = top + side + 34
    parts: list[Markup] = []
    for index, panel in enumerate(panels):
        across, below = (index % columns) * (left + side + 8 + gap), (index // columns) * down
        x = svg.Scale(0, 1, across + left, across + left + side)
        y = svg.Scale(0, 1, below + top + side, below + top)
        name = svg.clip(panel.name, int((left + side) / BOLD_PX))
        parts += [
            svg.element("text", svg.title(panel.name), name, x=across, y=below + 14, class_="label name"),
            svg.text(across, below + 31, f"ECE {panel.ece:.3f}", "value"),
            *svg.grid(x, y, (0, 0.5, 1), (0, 0.5, 1), left=x.start, right=x.end, bottom=y.start),
            svg.line(x.start, y.start, x.end, y.start, "frame"),
            svg.line(x.start, y.start, x.end, y.end, "mark"),
            svg.polyline([(x(confidence), y(quality)) for _, confidence, quality in panel.bins], "curve"),
        ]
        most = max((number for number, _, _ in panel.bins), default=1)
        for number, confidence, quality in panel.bins:
            said = f"{number:,} answers, confidence {percent(confidence)}, right {percent(quality)}"
            radius = max(2.5, LARGEST_DOT_PX * (number / most) ** 0.5)
            parts.append(_dot(x(confidence), y(quality), radius, "dot", said))
    label = "Reliability: " + "; ".join(f"{panel.name} ECE {panel.ece:.3f}" for panel in panels)
    return svg.picture(width, -(-len(panels) // columns) * down, label, *parts)


def frontier_chart(spots: Sequence[Spot], width: float, unit: str) -> Markup:
    """Quality over cost, with a line through what nothing cheaper equals; a name where it has room."""
    height = 320.0
    left, right, top, bottom = 52.0, width - 30.0, 26.0, height - 38.0
    x_ticks = svg.ticks(0.0, max(spot.cost for spot in spots), 5 if width >= svg.WIDE else 3)
    y_ticks = svg.ticks(min(spot.quality for spot in spots), max(spot.quality for spot in spots), 5)
    x, y = svg.Scale(x_ticks[0], x_ticks[-1], left, right), svg.Scale(y_ticks[0], y_ticks[-1], bottom, top)
    line = sorted((spot.cost, spot.quality) for spot in spots if spot.best)
    said = [f"{spot.name}: quality {percent(spot.quality)} at {spot.cost:.3g} {unit}" for spot in spots]
    parts = [
        svg.text(0, 12, "mean quality", "axis"),
        svg.text(right, height - 4, unit, "axis", "end"),
        *svg.grid(x, y, x_ticks, y_ticks, left=left, right=right, bottom=bottom),
        svg.line(left, bottom, right, bottom, "frame"),
        svg.polyline([(x(cost), y(quality)) for cost, quality in line], "curve"),
    ]
    for spot, words in zip(spots, said, strict=True):
        radius = 3.5 if spot.kind == "cascade" else 5.5
        parts.append(_dot(x(spot.cost), y(spot.quality), radius, f"point {TONES[spot.kind]}", words))
    parts += _names([(x(s.cost), y(s.quality), s) for s in spots], (left, top - TEXT_PX, width, bottom))
    return svg.picture(width, height, "Quality over cost: " + "; ".join(said), *parts)


def _names(placed: Sequence[tuple[float, float, Spot]], inside: Box) -> Iterator[Markup]:
    """Beside their dots, where a name covers neither a dot nor another name; experts choose first."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in placed]
    for x, y, spot in sorted(placed, key=lambda one: list(TONES).index(one[2].kind)):
        name = svg.clip(spot.name, 24)
        wide = len(name) * CHARACTER_PX
        for at, up, anchor in () if spot.kind == "cascade" else _places(x, y):
            start = at - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = (start, up - TEXT_PX + 4, start + wide, up + 4)
            fits = inside[0] <= box[0] and inside[1] <= box[1] and box[2] <= inside[2] and box[3] <= inside[3]
            if fits and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield svg.text(at, up, name, "label", anchor)
                break


def loss_bars(losses: Sequence[Loss], width: float) -> Markup:
    """What each policy misses of perfect quality: its own wrong turns, then what no expert can do."""
    layout = laid_out(width)
    top = 26.0
    most = max(loss.misrouted + loss.pool_gap for loss in losses) or 1.0
    x = svg.Scale(0, most, layout.left, width - (18 if layout.stacked else 130))
    legend = (("misrouted", "warn", 0.0), ("no expert is right", "neutral", 100.0))
    parts: list[Markup] = []
    for said, tone, shift in legend:
        parts += [
            svg.box(layout.left + shift, 4, 11, 11, f"bar {tone}"),
            svg.text(layout.left + shift + 16, 14, said, "axis"),
        ]
    rows: list[Markup] = []
    for index, loss in enumerate(losses):
        at = layout.centre(index)
        shown = f"{loss.misrouted * 100:.1f} + {loss.pool_gap * 100:.1f}"
        middle, end = x(loss.misrouted), x(loss.misrouted + loss.pool_gap)
        said = (
            f"{loss.name}: misrouted {percent(loss.misrouted)}, no expert is right {percent(loss.pool_gap)}"
        )
        rows += [
            layout.label(index, loss.name, shown),
            svg.box(layout.left, at - 9, middle - layout.left, 18, "bar warn", svg.title(said), radius=0),
            svg.box(middle, at - 9, end - middle, 18, "bar", svg.title(said), radius=0),
            layout.value(index, shown),
        ]
    parts.append(svg.element("g", *rows, transform=f"translate(0 {top:g})"))
    label = "Points of quality lost, misrouted + no expert is right: " + "; ".join(
        f"{loss.name} {loss.misrouted * 100:.1f} + {loss.pool_gap * 100:.1f}" for loss in losses
    )
    return svg.picture(width, top + layout.centre(len(losses) - 1) + 16, label, *parts)


def _places(x: float, y: float) -> Iterator[tuple[float, float, str]]:
    """Where a dot's name may stand, the nearest first."""
    for far, (side, rise) in product((1, 2), (("start", 4), ("end", 4), ("middle", -10), ("middle", 20))):
        shift = {"start": 10.0, "end": -10.0, "middle": 0.0}[side]
        yield x + shift, y + rise + (far - 1) * (TEXT_PX if rise > 0 else -TEXT_PX), side


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _dot(x: float, y: float, radius: float, class_: str, said: str) -> Markup:
    return svg.element("circle", svg.title(said), cx=x, cy=y, r=radius, class_=class_)
