"""The charts as geometry: ticks, thinning, layers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.observe import charts, svg
from largeforge_ray.observe.dag import layered, lineage_picture
from largeforge_ray.observe.data import Funnel, Interval, Lineage, LossCurve, Node, Span, StageView

WIDTHS = pytest.mark.parametrize("width", [svg.WIDE, svg.NARROW])


def lineage(*edges: tuple[str, str]) -> Lineage:
    keys = dict.fromkeys(key for edge in edges for key in edge)
    return Lineage(tuple(Node(key, f"name {key}", "dataset", "present", True) for key in keys), edges)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_round_few_and_span_the_values(low: float, extent: float) -> None:
    high = low + extent
    marks = svg.ticks(low, high)
    slack = max(abs(low), abs(high), 1) * 1e-9 + extent * 1e-6
    assert 2 <= len(marks) <= 9
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert marks == sorted(marks)


@pytest.mark.parametrize(("total_s", "last"), [(0.0, "s"), (90, "s"), (600, "min"), (90_000, "h")])
def test_times_get_the_unit_that_reads_best(total_s: float, last: str) -> None:
    marks = svg.time_ticks(total_s)
    assert marks[0][0] == 0
    assert all(label.endswith(last) for _, label in marks)
    assert all(seconds <= max(total_s, 1e-3) for seconds, _ in marks)


def test_elements_escape_text_and_attributes() -> None:
    made = svg.element("text", "<b>", svg.title('"&"'), class_='a"b', data_x=1.50, missing=None)
    assert made == '<text class="a&#34;b" data-x="1.5">&lt;b&gt;<title>&#34;&amp;&#34;</title></text>'


@WIDTHS
def test_a_long_curve_is_thinned_but_keeps_its_spikes(width: float) -> None:
    points = [(float(step), 1.0) for step in range(20_000)]
    points[12_345] = (12_345.0, 9.0)
    picture = charts.loss_chart(LossCurve("tuned", tuple(points)), width)
    assert "step 12345: loss 9.0000" in picture
    assert picture.count("<circle") <= charts.MOST_POINTS + 2
    assert len(picture) < 60_000


@WIDTHS
def test_a_curve_of_one_point_is_drawn(width: float) -> None:
    picture = charts.loss_chart(LossCurve("tuned", ((3.0, 1.25),)), width)
    assert "step 3: loss 1.2500" in picture
    assert "nan" not in picture


def test_a_step_at_which_another_trial_was_taken_over_is_marked() -> None:
    curve = LossCurve("tuned", ((1.0, 2.0), (9.0, 1.0)), marks=((4.0, "until here trial 00001"),))
    picture = charts.loss_chart(curve, svg.WIDE)
    assert "<title>until here trial 00001</title>" in picture
    assert picture.count('class="mark"') == 1


@WIDTHS
def test_held_out_losses_are_drawn_beside_those_of_training(width: float) -> None:
    curve = LossCurve("tuned", ((1.0, 2.0), (9.0, 1.0)), held_out=((0.0, 3.5), (9.0, 1.5)))
    picture = charts.loss_chart(curve, width)
    assert "held-out rows, step 0: loss 3.5000" in picture
    assert picture.count('class="dot held"') == 2
    assert picture.count('class="curve held"') == 1
    assert "on held-out rows from 3.500 to 1.500" in picture


def test_a_running_mean_neither_lags_nor_shifts_and_dampens_noise() -> None:
    line = [(float(step), 2.0 * step) for step in range(60)]
    assert charts.smoothed(line) == [(step, pytest.approx(loss)) for step, loss in line]
    noisy = [(float(step), float(step % 2)) for step in range(60)]
    assert charts.smoothing_window(60) == 5
    assert all(0.3 < loss < 0.7 for _, loss in charts.smoothed(noisy)[2:-2])
    assert charts.smoothed(line[:10]) == []


@WIDTHS
def test_every_chart_stays_inside_its_picture(width: float) -> None:
    stages = (
        StageView("cached", "dataset", "dataset", "0", "cached", cached_at_s=0.0),
        StageView(
            "a very long stage name that has to be cut somewhere", "train", "adapter", "1", "finished",
            (Span(0.0, 20.0, "failed"), Span(40.0, 100.0, "finished")), None, 60.0,
            (("start", 20.0), ("training", 39.0)),
        ),
        StageView("waiting", "promote", "router", "2", "planned"),
    )  # fmt: skip
    rows = [charts.Whisker("tuned", Interval(0.5, 0.0, 1.0), "50%", "expert")]
    pictures = [
        charts.timeline_chart(stages, 100.0, width),
        charts.whisker_chart(rows, width, "accuracy of one", 0.0, 1.0),
        charts.funnel_chart(Funnel("rows", 100, 60, 30, 10), width),
        charts.funnel_chart(Funnel("rows", 0, 0, 0, 0), width),
        charts.funnel_chart(Funnel("rows", 9, 60, 30, 10, (), 4, 6, made=50, usd=0.25), width),
        charts.loss_chart(LossCurve("tuned", tuple((float(s), 2.0 / (s + 1)) for s in range(50))), width),
    ]
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        for shape in root.iter("rect"):
            assert float(shape.attrib["x"]) >= 0
            assert float(shape.attrib["x"]) + float(shape.attrib["width"]) <= width
        for circle in root.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= float(root.attrib["height"])


def test_phases_that_overlap_are_not_drawn_end_to_end() -> None:
    stage = StageView(
        "rows",
        "teach",
        "dataset",
        "0",
        "finished",
        (Span(0, 10, "finished"),),
        None,
        10.0,
        (("a", 8.0), ("b", 8.0)),
    )
    assert "phase" not in charts.timeline_chart((stage,), 10.0, svg.WIDE)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda e: e[0] < e[1]), min_size=1, unique=True
    )
)
def test_layers_put_every_artifact_after_its_parents_without_overlap(pairs: list[tuple[int, int]]) -> None:
    graph = lineage(*((str(a), str(b)) for a, b in pairs))
    layers = layered(graph)
    depth = {item: index for index, layer in enumerate(layers) for item in layer if isinstance(item, str)}
    assert set(depth) == {node.key for node in graph.nodes}
    assert all(depth[parent] < depth[child] for parent, child in graph.edges)
    for parent, child in graph.edges:
        passed = [index for index, layer in enumerate(layers) if (parent, child) in layer]
        assert passed == list(range(depth[parent] + 1, depth[child]))
    for width in (svg.WIDE, svg.NARROW):
        root = ElementTree.fromstring(lineage_picture(graph, width))
        tiles = [tile for tile in root.iter("rect") if tile.attrib["class"] == "tile"]
        boxes = [[float(tile.attrib[name]) for name in ("x", "y", "width", "height")] for tile in tiles]
        for index, (x, y, w, h) in enumerate(boxes):
            assert x >= 0
            assert y >= 0
            assert x + w <= float(root.attrib["width"])
            assert y + h <= float(root.attrib["height"])
            for other_x, other_y, other_w, other_h in boxes[:index]:
                apart_x = x + w <= other_x or other_x + other_w <= x
                assert apart_x or y + h <= other_y or other_y + other_h <= y


def test_a_crossing_that_can_be_avoided_is() -> None:
    graph = lineage(("a", "d"), ("b", "c"), ("a", "x"), ("b", "x"))
    first, second = layered(graph)[:2]
    assert list(first) == ["a", "b"]
    assert second.index("d") < second.index("c")


def test_the_lineage_runs_left_to_right_on_a_desktop_and_down_on_a_phone() -> None:
    graph = lineage(("a", "b"), ("b", "c"))
    for width, axis in ((svg.WIDE, "x"), (svg.NARROW, "y")):
        picture = lineage_picture(graph, width)
        places = [
            float(found) for found in re.findall(rf'<rect [^>]*\b{axis}="([\d.]+)"[^>]*class="tile"', picture)
        ]
        assert places == sorted(places)
        assert len(set(places)) == 3
        assert "name a to name b; name b to name c" in picture
