"""The report in a real browser: it loads by itself, shows its pictures, and fits a phone and a desktop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest

from largeforge_ray.observe import write_report
from largeforge_ray.observe.collect import collect
from largeforge_ray.observe.data import Candidate, Evaluation, Gain, Interval
from largeforge_ray.observe.page import render
from largeforge_ray.store import open_store
from tests.local_ray._browser import (
    DESKTOP,
    PHONE,
    TEXT_COLOURS,
    Tab,
    contrast,
    loaded_by_itself,
    luminance,
    opens_once,
)
from tests.unit.test_report_example import make_run

HOSTILE = "<script>document.title=1</script>'><img src=x onerror=alert(2)> @import https://example.invalid/x"
# section -> the shapes that make up its picture
SHAPES = {
    "accuracy": ["circle.point", "line.whisker", "line.grid"],
    "loss": ["polyline.curve", "line.frame"],
    "funnel": ["rect.bar"],
    "timeline": ["rect.span", "rect.phase", "polygon.cached"],
    "lineage": ["rect.tile", "rect.stripe", "path.edge"],
}
SHOWN = """[...document.querySelectorAll("svg")].filter(svg => svg.getClientRects().length)"""
BOX = """(one => { const r = one.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom] })"""
PICTURES = f"""{SHOWN}.map(svg => ({{
  section: svg.closest("section").id,
  frame: {BOX}(svg),
  texts: [...svg.querySelectorAll("text")].map(one => [
    [...one.childNodes].filter(node => node.nodeType == 3).map(node => node.data).join(""), {BOX}(one)]),
  marks: [...svg.querySelectorAll("circle.point, polygon.cached")].map({BOX}),
  tiles: [...svg.querySelectorAll("g.node")].map(one => [
    {BOX}(one.querySelector(".tile")), [...one.querySelectorAll("text")].map({BOX})]),
}}))"""
NUM_DRAWN = f"""{SHOWN}.flatMap(svg => [...svg.querySelectorAll("#%s %s")]).filter(one => {{
  const r = one.getBoundingClientRect();
  return r.width + r.height > 1;
}}).length"""
TOO_WIDE = """[...document.querySelectorAll(".scroll, figure > div")].filter(
  one => one.scrollWidth > one.clientWidth).map(one => one.textContent.slice(0, 80))"""
Box = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``plain`` is a usual run. ``hard`` has hostile long names, perfect scores and a total loss."""
    folder = tmp_path_factory.mktemp("reports")
    plain = open_store(folder / "plain")
    hard = open_store(folder / "hard")
    data = collect(hard, make_run(hard, marker=HOSTILE))
    name = "a-name-that-takes-all-64-places-" * 2
    one, zero = Interval(1.0, 1.0, 1.0, 0.95), Interval(0.0, 0.0, 0.0, 0.95)
    candidates = (Candidate("base", one, 40, 0), Candidate(name, zero, 4_000_000, 123_456))
    gains = (Gain(name, "base", Interval(-1.0, -1.0, 1.0, 0.95), 40),)
    data = dataclasses.replace(data, evaluations=(Evaluation("outcomes", candidates, gains),))
    (folder / "hard.html").write_text(render(data), encoding="utf-8")
    return {
        "plain": Path(write_report(plain, make_run(plain))).as_uri(),
        "hard": (folder / "hard.html").as_uri(),
    }


@pytest.fixture(scope="module")
def opened(browser: str, reports: dict[str, str]) -> Iterator[Callable[..., Tab]]:
    with opens_once(browser, reports) as open_once:
        yield open_once


EACH = pytest.mark.parametrize("name", ["plain", "hard"])
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


@EACH
@SIZES
def test_it_loads_from_a_file_without_a_word_and_asks_for_nothing_else(
    opened: Callable[..., Tab], reports: dict[str, str], name: str, size: tuple[int, int]
) -> None:
    tab = opened(name, size)
    loaded_by_itself(tab, reports[name])
    assert "was promoted" in tab.run("document.title")


@SIZES
def test_every_part_of_the_story_is_visible(opened: Callable[..., Tab], size: tuple[int, int]) -> None:
    tab = opened("plain", size)
    assert tab.run("document.querySelector('h1').getBoundingClientRect().height") > 20
    pictures = tab.run(PICTURES)
    assert [one["section"] for one in pictures] == [
        *["accuracy"] * 2,
        "loss",
        "funnel",
        "timeline",
        "lineage",
    ]
    for one in pictures:
        left, top, right, bottom = one["frame"]
        assert right - left >= (300 if size == PHONE else 700)
        assert bottom - top >= 40
    for section, shapes in SHAPES.items():
        for shape in shapes:
            assert tab.run(NUM_DRAWN % (section, shape)), f"{section} shows no {shape}"


@EACH
@SIZES
def test_nothing_scrolls_sideways(opened: Callable[..., Tab], name: str, size: tuple[int, int]) -> None:
    tab = opened(name, size)
    assert tab.run("innerWidth") == size[0]
    assert tab.run("document.documentElement.scrollWidth") <= size[0]
    if name == "plain":
        assert tab.run(TOO_WIDE) == []
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert tab.run("document.documentElement.scrollWidth") <= size[0]
    tab.run("document.querySelectorAll('details').forEach(one => one.open = false)")


@EACH
@SIZES
def test_texts_of_pictures_are_inside_them_and_apart(
    opened: Callable[..., Tab], name: str, size: tuple[int, int]
) -> None:
    for one in opened(name, size).run(PICTURES):
        where, frame = f"{name} {one['section']}", one["frame"]
        for text, box in one["texts"]:
            assert text.strip(), where
            assert _inside(box, frame, 2), f"{where}: '{text}' leaves its picture"
        for (text, box), (other, other_box) in combinations(one["texts"], 2):
            assert not _overlap(box, other_box), f"{where}: '{text}' lies on '{other}'"
        for mark in one["marks"]:
            assert not [text for text, box in one["texts"] if _overlap(box, mark)], where
        for tile, texts in one["tiles"]:
            assert [text for text in texts if not _inside(text, tile, 0)] == [], (where, tile)


def _inside(box: Box, frame: Box, slack: float) -> bool:
    left, top = box[0] >= frame[0] - slack, box[1] >= frame[1] - slack
    return left and top and box[2] <= frame[2] + slack and box[3] <= frame[3] + slack


def _overlap(a: Box, b: Box) -> bool:
    """By more than 2 px each way: the box of a text is taller than its letters."""
    return min(a[2], b[2]) - max(a[0], b[0]) > 2 and min(a[3], b[3]) - max(a[1], b[1]) > 2


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_every_text_is_readable_in_both_schemes(opened: Callable[..., Tab], scheme: str, dark: bool) -> None:
    colours = opened("plain", DESKTOP, scheme).run(TEXT_COLOURS)
    assert len(colours) > 150
    for text, ink, paper, outline in colours:
        assert (luminance(paper) < 0.05) is dark, (text, paper)
        assert contrast(ink, paper) >= 4.5, f"'{text}': {ink} on {paper}"
        assert outline in ("none", paper), f"'{text}' is drawn with an outline in {outline}"
