"""The page of an evaluation in a real browser: desktop and phone, light and dark, by itself and readable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import combinations

import pytest

from largeforge_ray.observe.evaluations import render_evaluation
from tests.local_ray._browser import (
    DESKTOP,
    TEXT_COLOURS,
    Tab,
    contrast,
    loaded_by_itself,
    luminance,
    opens_once,
)
from tests.local_ray.test_report_browser import PICTURES, _inside, _overlap
from tests.unit._evaluation import ABOUT, example
from tests.unit.test_report_evaluation import HOSTILE

PHONE = (360, 800)
CHAPTERS = [
    *("scores", "comparisons", "calibration", "frontier", "slices", "robustness", "fairness"),
    *("contamination", "items", "efficiency"),
]
NAMELESS = """[
  ...[...document.querySelectorAll("svg")].filter(one => one.getAttribute("role") != "img" || !one.ariaLabel),
  ...[...document.querySelectorAll("table")].filter(one => !one.caption || !one.caption.textContent.trim()),
  ...[...document.querySelectorAll("th")].filter(one => !one.scope),
  ...[...document.querySelectorAll(".scroll")].filter(one => one.tabIndex != 0 || !one.ariaLabel),
].map(one => one.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``plain`` is a usual evaluation. ``hard`` has hostile long names and answers of one endless word."""
    folder = tmp_path_factory.mktemp("evaluations")
    written = json.dumps(example())
    hard = written.replace("tuned-int4", json.dumps(HOSTILE)[1:-1]).replace("mmlu", "a-name-without-end-" * 4)
    hard = hard.replace("First I count", "w" * 2000)
    made = {}
    for name, text in {"plain": written, "hard": hard}.items():
        page = render_evaluation(json.loads(text), title="Evaluation ‘outcomes’", about=ABOUT)
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
        made[name] = (folder / f"{name}.html").as_uri()
    return made


@pytest.fixture(scope="module")
def opened(browser: str, pages: dict[str, str]) -> Iterator[Callable[..., Tab]]:
    with opens_once(browser, pages) as open_once:
        yield open_once


EACH = pytest.mark.parametrize("name", ["plain", "hard"])
SIZES = pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])


@EACH
@SIZES
def test_it_loads_without_a_word_and_asks_for_nothing_else(
    opened: Callable[..., Tab], pages: dict[str, str], name: str, size: tuple[int, int]
) -> None:
    tab = opened(name, size)
    loaded_by_itself(tab, pages[name])
    assert tab.run("[...document.querySelectorAll('section')].map(one => one.id)") == CHAPTERS


@EACH
@SIZES
def test_only_tables_scroll_sideways(opened: Callable[..., Tab], name: str, size: tuple[int, int]) -> None:
    tab = opened(name, size)
    for unfolded in ("true", "false"):
        tab.run(f"document.querySelectorAll('details').forEach(one => one.open = {unfolded})")
        assert tab.run("document.documentElement.scrollWidth") <= size[0]
    assert (
        tab.run("[...document.querySelectorAll('figure > div')].filter(a => a.scrollWidth > a.clientWidth)")
        == []
    )


@EACH
@SIZES
def test_texts_of_pictures_are_inside_them_and_apart(
    opened: Callable[..., Tab], name: str, size: tuple[int, int]
) -> None:
    pictures = opened(name, size).run(PICTURES)
    assert [one["section"] for one in pictures] == ["scores", "calibration", "frontier", "frontier"]
    for one in pictures:
        for text, box in one["texts"]:
            assert _inside(box, one["frame"], 2), f"{one['section']}: '{text}' leaves its picture"
        for (text, box), (other, other_box) in combinations(one["texts"], 2):
            assert not _overlap(box, other_box), f"{one['section']}: '{text}' lies on '{other}'"


@EACH
def test_a_screen_reader_finds_a_name_for_everything(opened: Callable[..., Tab], name: str) -> None:
    assert opened(name, DESKTOP).run(NAMELESS) == []


def test_long_answers_are_folded_and_open(opened: Callable[..., Tab]) -> None:
    tab = opened("plain", PHONE)
    folded = (
        "[...document.querySelectorAll('.item details')].map(one => one.querySelector('p').checkVisibility())"
    )
    assert set(tab.run(folded)) == {False}
    tab.run("document.querySelectorAll('.item summary').forEach(one => one.click())")
    assert set(tab.run(folded)) == {True}


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_every_text_is_readable_in_both_schemes(opened: Callable[..., Tab], scheme: str, dark: bool) -> None:
    tab = opened("plain", DESKTOP, scheme)
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert (luminance(tab.run("getComputedStyle(document.body).backgroundColor")) < 0.05) is dark
    colours = tab.run(TEXT_COLOURS)
    assert len(colours) > 500
    for text, ink, paper, _ in colours:
        assert contrast(ink, paper) >= 4.5, f"'{text}': {ink} on {paper}"
