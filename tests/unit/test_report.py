"""The page: complete, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from largeforge_ray.errors import StoreError
from largeforge_ray.observe import build_report, write_report
from largeforge_ray.observe.collect import collect
from largeforge_ray.observe.data import Interval, ReportData, StageView
from largeforge_ray.observe.page import render
from largeforge_ray.observe.report import report_json
from largeforge_ray.observe.words import duration, gain_sentence, headline, signed_points
from largeforge_ray.store import Store, open_store
from tests.unit.test_report_example import RUN, make_run

SECTIONS = ("accuracy", "loss", "funnel", "timeline", "lineage", "items", "cost", "manifest")
VOID = {"meta", "link", "br", "hr", "img", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&lt;"


class Page(HTMLParser):
    """Elements with their attributes, text by section, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section = ""
        self.text: dict[str, str] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def test_a_complete_run_fills_every_section(store: Store) -> None:
    page = Page(build_report(store, make_run(store)))
    assert "‘tuned’ was promoted" in page.text[""]
    assert "a gain of 27.5 points, with a 95% interval from +12.5 to +42.5" in page.text[""]
    assert RUN in page.text[""]
    assert "2026-01-02 09:00 UTC" in page.text[""]
    assert "7 min 05 s" in page.text[""]
    for section, words in {
        "accuracy": ["62.5%", "35.0%", "Paired gain", "+27.5", "95% interval"],
        "loss": ["nats per token", "step 1: loss", "mean of 7 steps"],
        "funnel": ["prompts", "640", "412", "401", "exact: answer differs", "48,211 tokens"],
        "items": ["Improved", "Got worse", "Still wrong", "A train leaves", "error: timed out"],
        "timeline": ["engine start", "generation", "everything else", "cached"],
        "lineage": ["dataset", "adapter", "outcomes", "router"],
        "cost": ["seconds", "422.8", "cached: spent by an earlier run"],
        "manifest": ["name: quickstart"],
    }.items():
        for word in words:
            assert word in page.text[section], (section, word)
    assert 'class="absent"' not in build_report(store, RUN)


def test_the_page_loads_nothing_and_runs_nothing(store: Store) -> None:
    html = build_report(store, make_run(store))
    page = Page(html)
    assert {"script", "iframe", "object", "embed", "img", "base", "form", "a"}.isdisjoint(
        tag for tag, _ in page.elements
    )
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert (value or "").startswith("data:"), (tag, name, value)
            if name == "style":
                assert re.fullmatch(r"width:[\d.]+%", value or ""), value
    assert not re.search(r"url\(|@import|https?:|[\"'(=]\s*//", html)
    [policy] = [m for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_every_text_that_a_user_provides_is_escaped(store: Store) -> None:
    html = build_report(store, make_run(store, marker=HOSTILE))
    page = Page(html)
    assert {"script", "img"}.isdisjoint(tag for tag, _ in page.elements)
    assert "<script" not in html
    assert "49" not in page.text["manifest"]
    for section in ("items", "timeline", "lineage", "cost", "manifest", "funnel"):
        assert HOSTILE in page.text[section], section


def test_a_failing_message_is_escaped_too(store: Store) -> None:
    page = Page(build_report(store, make_run(store, marker=HOSTILE, failing="live")))
    assert "script" not in [tag for tag, _ in page.elements]
    assert f"gain too small{HOSTILE}" in page.text[""]


def test_pictures_are_described_and_the_page_adapts(store: Store) -> None:
    page = Page(build_report(store, make_run(store)))
    pictures = page.tags("svg")
    assert len(pictures) == 2 * 6
    assert all(one["role"] == "img" and len(one["aria-label"] or "") > 20 for one in pictures)
    assert {one["width"] for one in pictures} >= {"760", "350"}
    assert page.tags("html")[0]["lang"] == "en"
    assert any("width=device-width" in (meta.get("content") or "") for meta in page.tags("meta"))
    html = build_report(store, RUN)
    assert "prefers-color-scheme: dark" in html
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert ids == list(SECTIONS)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("base", "prompts"),
            {
                "accuracy": "does not have an evaluate stage",
                "loss": "does not have a training stage",
                "funnel": "does not have a teach stage",
                "items": "does not have an evaluate stage",
            },
        ),
        (("base", "prompts", "rows"), {"loss": "does not have a training stage"}),
    ],
)
def test_a_missing_stage_leaves_one_sentence(
    store: Store, names: tuple[str, ...], said: dict[str, str]
) -> None:
    page = Page(build_report(store, make_run(store, names)))
    for section, sentence in said.items():
        assert sentence in page.text[section]
    assert "The run finished" in page.text[""]


def test_a_failed_stage_is_the_headline_and_later_sections_say_what_they_wait_for(store: Store) -> None:
    page = Page(build_report(store, make_run(store, failing="tuned")))
    assert "The run failed in stage ‘tuned’" in page.text[""]
    assert "No stage has logged a loss yet: ‘tuned’ (failed)." in page.text["loss"]
    assert "No stage has finished yet: ‘outcomes’ (planned)." in page.text["accuracy"]
    assert "Stage ‘tuned’ failed: 'tuned' did not pass" in page.text["timeline"]
    assert "640" in page.text["funnel"]


def test_a_refused_promotion_says_so_with_the_measurement_and_the_reason(store: Store) -> None:
    page = Page(build_report(store, make_run(store, failing="live")))
    assert "‘tuned’ was not promoted" in page.text[""]
    assert "It scored 62.5% on 40 held-out items, where ‘base’ scored 35.0%" in page.text[""]
    assert "gain too small" in page.text[""]


def test_a_run_of_cached_stages_has_a_report(store: Store) -> None:
    make_run(store)
    names = ("base", "prompts", "rows", "tuned", "outcomes", "live")
    page = Page(build_report(store, make_run(store, names, cached=names, run="again")))
    assert "‘tuned’ was promoted" in page.text[""]
    assert "An earlier run decided this" in page.text[""]
    assert "6 (6 cached)" in page.text[""]
    assert "step 1: loss" in page.text["loss"]


def test_a_run_without_stages_or_events_has_a_report() -> None:
    empty = ReportData("r", "m", "", "running", None, (), absent=dict.fromkeys(SECTIONS, "Nothing yet."))
    page = Page(render(empty))
    assert page.text["lineage"].count("no stages") == 1


def test_the_report_and_its_json_are_written_beside_the_events(store: Store) -> None:
    path = Path(write_report(store, make_run(store)))
    assert path.name == "report.html"
    assert path.read_text(encoding="utf-8") == build_report(store, RUN)
    facts = json.loads((path.parent / "report.json").read_text())
    assert facts["evaluations"][0]["gains"][0]["interval"]["value"] == 0.275
    assert set(facts) == {field.name for field in dataclasses.fields(ReportData)}


def test_json_has_no_number_that_is_not_finite(store: Store) -> None:
    data = dataclasses.replace(collect(store, make_run(store)), total_s=float("nan"))
    assert json.loads(report_json(data), parse_constant=pytest.fail)["total_s"] is None


def test_a_remote_store_gets_its_report_at_its_url() -> None:
    store = open_store("memory://report-test")
    url = write_report(store, make_run(store))
    assert url == f"memory://report-test/runs/{RUN}/report.html"
    assert store.exists(f"runs/{RUN}/report.json")


def test_a_run_that_is_not_there_is_an_error_with_a_fix(store: Store) -> None:
    with pytest.raises(StoreError, match=r"run 'nobody' has no plan.json .* check the run id"):
        build_report(store, "nobody")


def test_a_long_answer_is_cut_and_counted(store: Store) -> None:
    html = build_report(store, make_run(store, ("base", "prompts", "tuned", "outcomes"), marker="x" * 5000))
    assert "more characters)" in html
    assert len(html) < 800_000


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0, "0.0 s"),
        (0.42, "0.42 s"),
        (59.97, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_read_well(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_gains_in_words_name_a_loss_and_an_open_sign() -> None:
    assert signed_points(-0.0501) == "−5.0"
    assert signed_points(-0.0001) == "0.0"
    said = gain_sentence(Interval(-0.05, -0.2, 0.1, 0.9))
    assert said.startswith("a loss of 5.0 points, with a 90% interval from −20.0 to +10.0.")
    assert "includes zero" in said


def test_a_run_that_is_not_over_says_how_far_it_is() -> None:
    stages = (
        StageView("a", "dataset", "dataset", "0" * 64, "finished"),
        StageView("b", "train", "adapter", "1" * 64, "running"),
    )
    said = headline(ReportData("r", "m", "", "running", 3.0, stages))
    assert (said.title, said.lead) == ("The run has not finished", "1 of 2 stages are done.")
