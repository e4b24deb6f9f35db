"""What a router stage measured on held-out prompts, and the chart of quality over cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from largeforge_ray.observe import svg
from largeforge_ray.observe.data import CostPoint, RouterView

HEIGHT = 260.0


def router_view(stage: str, metrics: Mapping[str, Any]) -> RouterView | None:
    """The router that a stage's metrics record, None if they record none."""
    if "confusion" not in metrics:
        return None
    marks = [("random", metrics["random"]), *metrics["single"].items(), ("oracle", metrics["oracle"])]
    return RouterView(
        stage=stage,
        policy=str(metrics["policy"]),
        held_out=int(metrics["held_out"]),
        by_kind=tuple((str(kind), float(accuracy)) for kind, accuracy in metrics["by_kind"].items()),
        experts=tuple(map(str, metrics["experts"])),
        confusion=tuple(tuple(map(int, row)) for row in metrics["confusion"]),
        ece=float(metrics["calibration"]["ece"]),
        bins=tuple(
            (int(b["n"]), float(b["confidence"]), float(b["quality"])) for b in metrics["calibration"]["bins"]
        ),
        curve=tuple(_point(f"cost weight {p['cost_weight']:.3g}", p) for p in metrics["curve"]),
        marks=tuple(_point(name, point) for name, point in marks),
    )


def _point(name: str, point: Mapping[str, float]) -> CostPoint:
    return CostPoint(name, float(point["cost"]), float(point["quality"]))


def cost_chart(router: RouterView, width: float) -> Markup:
    """Mean quality over mean price: the policy's curve, and what needs no policy beside it."""
    every = [*router.curve, *router.marks]
    left, right, top, bottom = 52.0, width - 14.0, 26.0, HEIGHT - 38.0
    x_ticks = svg.ticks(min(p.cost for p in every), max(p.cost for p in every), 5)
    y_ticks = svg.ticks(min(p.quality for p in every), max(p.quality for p in every), 5)
    x, y = svg.Scale(x_ticks[0], x_ticks[-1], left, right), svg.Scale(y_ticks[0], y_ticks[-1], bottom, top)
    parts = [
        svg.text(0, 12, "mean quality", "axis"),
        svg.text(right, HEIGHT - 4, "mean price", "axis", "end"),
    ]
    parts += svg.grid(x, y, x_ticks, y_ticks, left=left, right=right, bottom=bottom)
    parts += [
        svg.line(left, bottom, right, bottom, "frame"),
        svg.polyline([(x(p.cost), y(p.quality)) for p in router.curve], "curve"),
    ]
    for points, class_ in ((router.curve, "dot"), (router.marks, "dot held")):
        for point in points:
            said = svg.title(f"{point.name}: quality {point.quality:.3f} at price {point.cost:.4g}")
            at = {"cx": x(point.cost), "cy": y(point.quality), "r": 4.0}
            parts.append(svg.element("circle", said, class_=class_, **at))
    for point in router.marks:
        # Beside its dot, on the side that has room.
        to_the_left = x(point.cost) > (left + right) / 2
        shift, anchor = (-8, "end") if to_the_left else (8, None)
        parts.append(svg.text(x(point.cost) + shift, y(point.quality) - 7, point.name, "tick", anchor))
    label = f"Quality over price in stage {router.stage}: " + "; ".join(
        f"{p.name} {p.quality:.3f} at {p.cost:.4g}" for p in router.marks
    )
    return svg.picture(width, HEIGHT, label, *parts)
