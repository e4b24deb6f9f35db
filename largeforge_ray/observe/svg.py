"""The little SVG that the report's pictures need: escaped elements, scales and ticks.

Colours come from the page's CSS classes, so that one picture serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDE = 760
"""Width in px of a picture beside a desktop's column of text."""
NARROW = 350
"""Width in px of the same picture on a phone: drawn again, because scaled text would be unreadable."""


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """An element with escaped attributes and children; Markup children are kept as they are.

    Attribute names lose a trailing '_' and get '-' for '_'; those with the value None are left out.
    """
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{name}{''.join(parts)}>{inside}</{name}>")  # every part is escaped above


def picture(width: float, height: float, label: str, *children: str) -> Markup:
    """The root: an image to assistive technology, described by its label."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {_text(width)} {_text(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None) -> Markup:
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def box(
    x: float, y: float, width: float, height: float, class_: str, *children: str, radius: float = 2
) -> Markup:
    return element(
        "rect", *children, x=x, y=y, width=max(width, 0), height=max(height, 0), rx=radius, class_=class_
    )


def title(content: str) -> Markup:
    """What a pointer that rests on the parent shows."""
    return element("title", content)


def clip(content: str, most: int) -> str:
    """The text in one line of at most so many characters, with an ellipsis where it was cut."""
    flat = " ".join(content.split())
    return flat if len(flat) <= most else flat[: max(most - 1, 1)].rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Figure:
    """One picture, drawn for a desktop and for a phone; the page's CSS shows one of them."""

    wide: Markup
    narrow: Markup


def figure(draw: Callable[[float], Markup]) -> Figure:
    return Figure(draw(WIDE), draw(NARROW))


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values to px."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten apart) that span low to high."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def time_ticks(total_s: float, about: int = 6) -> list[tuple[float, str]]:
    """Round times in seconds from zero to the total, each with its label in s, min or h."""
    unit_s, name = (1.0, "s") if total_s < 120 else (60.0, "min") if total_s < 7200 else (3600.0, "h")
    times = ticks(0.0, max(total_s, 1e-3) / unit_s, about)
    return [(time * unit_s, f"{time:g} {name}") for time in times if time * unit_s <= max(total_s, 1e-3)]


def plain(value: float) -> str:
    """A tick's label: no more digits than it needs."""
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")


def grid(
    x: Scale,
    y: Scale,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    *,
    left: float,
    right: float,
    bottom: float,
) -> list[Markup]:
    """A line across for each tick of ``y`` with its number, and the numbers of ``x`` below."""
    parts: list[Markup] = []
    for tick in y_ticks:
        parts += [
            line(left, y(tick), right, y(tick), "grid"),
            text(left - 8, y(tick) + 4, plain(tick), "tick", "end"),
        ]
    return parts + [text(x(tick), bottom + 18, plain(tick), "tick", "middle") for tick in x_ticks]
