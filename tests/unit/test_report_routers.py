"""A router in the report: who was chosen for what, how sure it was, and quality over price."""

from __future__ import annotations

from largeforge_ray.observe.data import ReportData, RouterView
from largeforge_ray.observe.page import render
from largeforge_ray.observe.routers import cost_chart, router_view

METRICS = {
    "policy": "learned",
    "by_kind": {"keyword": 0.4, "learned": 0.875},
    "held_out": 40,
    "experts": ["base", "orders <b>"],
    "accuracy": 0.875,
    "confusion": [[17, 3], [2, 18]],
    "calibration": {"ece": 0.0625, "bins": [{"n": 40, "confidence": 0.9, "quality": 0.8}]},
    "curve": [
        {"cost_weight": 0.0, "cost": 1.0, "quality": 0.9},
        {"cost_weight": 0.5, "cost": 0.25, "quality": 0.6},
    ],
    "single": {"base": {"cost": 0.0, "quality": 0.5}, "orders <b>": {"cost": 1.0, "quality": 0.7}},
    "random": {"cost": 0.5, "quality": 0.6},
    "oracle": {"cost": 0.4, "quality": 0.95},
}


def report(*routers: RouterView) -> ReportData:
    absent = dict.fromkeys(("accuracy", "loss", "funnel", "timeline", "items", "cost"), "Nothing here.")
    return ReportData("r", "m", "", "finished", None, (), routers=routers, absent=absent)


def test_the_page_shows_accuracy_confusion_and_calibration_with_names_escaped() -> None:
    router = router_view("routing", METRICS)
    assert router is not None
    page = render(report(router))
    section = page.split('<section id="routers">')[1].split("</section>")[0]
    assert "keyword 40.0%, learned 87.5%." in section
    assert "Expected calibration error 0.062" in section
    assert '<td class="num">18</td>' in section
    assert "orders &lt;b&gt;" in section
    assert "<b>" not in section


def test_the_chart_has_the_curve_and_every_mark_inside_its_frame() -> None:
    router = router_view("routing", METRICS)
    assert router is not None
    for width in (760, 350):
        drawn = str(cost_chart(router, width))
        assert drawn.count("<circle") == 6
        for name in ("random", "oracle", "base"):
            assert f">{name}</text>" in drawn
        xs = [float(part.split('"')[0]) for part in drawn.split('cx="')[1:]]
        assert 0 < min(xs) <= max(xs) < width


def test_free_experts_are_one_point_and_a_promotion_is_no_router_view() -> None:
    free = {"cost": 0.0, "quality": 0.5}
    metrics = METRICS | {
        "curve": [{"cost_weight": 0.0, **free}],
        "single": {"base": free},
        "random": free,
        "oracle": free,
    }
    router = router_view("routing", metrics)
    assert router is not None
    assert "<svg" in str(cost_chart(router, 760))
    assert router_view("live", {"gain": 0.3, "live": ["base"]}) is None


def test_a_run_without_a_router_stage_has_no_such_section() -> None:
    assert 'id="routers"' not in render(report())
