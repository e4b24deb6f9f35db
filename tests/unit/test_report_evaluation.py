"""The page of an evaluation: every number is on it, hostile text is harmless, and a gap has its reason."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.errors import DataError
from largeforge_ray.observe import pictures, svg
from largeforge_ray.observe.data import Candidate, Evaluation, Interval, ReportData
from largeforge_ray.observe.evaluations import (
    evaluation_headline,
    evaluation_sections,
    markdown_evaluation,
    render_evaluation,
)
from largeforge_ray.observe.page import render
from largeforge_ray.observe.sections import Cell, Section, Table, escaped, markdown
from tests.unit._evaluation import ABOUT, EXPERTS, NOISE, SUBJECTS, TASKS, example

HOSTILE = (
    "</td><script>document.title=1</script>'\"| **x** ``` <img src=x onerror=alert(2)> [a](javascript:b)"
)


def shown(summary: dict[str, Any]) -> dict[str, str]:
    """The page's text without its markup, and the Markdown."""

    class Text(HTMLParser):
        said = ""

        def handle_data(self, data: str) -> None:
            self.said += data

    reader = Text()
    reader.feed(render_evaluation(summary, title="Evaluation", about=ABOUT))
    return {"html": reader.said, "markdown": markdown_evaluation(summary, title="Evaluation", about=ABOUT)}


def _said(key: str, value: float) -> list[str]:
    """How a number of the summary may stand on the page."""
    percent = f"{value * 100:.1f}"
    points = f"{value * 100:+.1f}".replace("-", "−") if round(value * 100, 1) else "0.0"
    minutes, rest_s = divmod(round(value), 60)
    whole, short, p = [f"{value:,}"], [f"{value:.4g}"], [f"{value:.2g}"]
    by_key = {
        **dict.fromkeys(("n", "errors", "marked", "prompt_tokens", "completion_tokens"), whole),
        "tokens_per_s": short,
        "cost": [*short, f"{value * 1000:.4g}"],
        **dict.fromkeys(("p", "p_corrected"), p),
        "seconds": [
            f"{value:.2f} s",
            f"{value:.1f} s",
            f"{minutes} min {rest_s:02d} s",
            f"{minutes // 60} h {minutes % 60:02d} min",
        ],
        "drop": [points, f"−{percent}"],
    }
    return by_key.get(key, [percent, points, f"{value:.3f}", f"{value:.4g}"])


def _numbers(part: Any, key: str = "") -> list[tuple[str, float]]:
    if isinstance(part, dict):
        return [found for name, inner in part.items() for found in _numbers(inner, name)]
    if isinstance(part, list):
        return [found for inner in part for found in _numbers(inner, key)]
    return [(key, part)] if isinstance(part, int | float) and not isinstance(part, bool) else []


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_every_number_name_and_answer_of_the_summary_is_on_the_page(form: str) -> None:
    summary = example()
    page = shown(summary)[form]
    missing = {
        (key, value)
        for key, value in _numbers(summary)
        if not any(said in page for said in _said(key, value))
    }
    assert missing == set()
    for name in (*EXPERTS, *TASKS, *SUBJECTS, "typos", "best by task", "oracle"):
        assert name in page
    assert "How many jars are in 17 boxes?" in page


def test_the_best_of_a_row_is_marked_and_what_is_as_good_is_said_in_words() -> None:
    summary = example()
    for task in ("mmlu", "gsm8k"):
        for one in summary["comparisons"]:
            if one["task"] == task:
                one["verdict"] = NOISE if task == "gsm8k" else "clear"
    page = shown(summary)["markdown"]
    row = next(line for line in page.splitlines() if line.startswith("| gsm8k, exact"))
    assert (row.count("★"), row.count("≈")) == (1, 2)
    assert "≈" not in next(line for line in page.splitlines() if line.startswith("| mmlu, acc"))
    words = next(line for line in page.splitlines() if line.startswith("No difference beyond noise:"))
    assert "gsm8k (" in words
    assert "mmlu (" not in words


@pytest.mark.parametrize(
    ("verdict", "title"),
    [("clear", "‘tuned’ is the best of 3 experts"), (NOISE, "No expert is best beyond noise")],
)
def test_the_headline_claims_no_more_than_the_comparisons(verdict: str, title: str) -> None:
    summary = example()
    best = max(summary["experts"], key=lambda name: summary["overall"][name]["accuracy"])
    for one in summary["comparisons"]:
        one["verdict"] = verdict
    assert evaluation_headline(summary).title == title.replace("tuned", best)


def test_hostile_text_is_neither_html_nor_markdown() -> None:
    summary = json.loads(json.dumps(example()).replace("tuned-int4", json.dumps(HOSTILE)[1:-1]))
    for item in summary["worst_items"]:
        item["prompt"] = HOSTILE + "\n```\n" * 3 + HOSTILE * 9
        for answer in item["answers"].values():
            answer["answer"] = HOSTILE
    page = render_evaluation(summary, title=HOSTILE, about={HOSTILE: HOSTILE})
    assert not re.search(r"<(script|img)", page)
    assert page.count("</td>") == page.count("<td")
    text = markdown_evaluation(summary, title=HOSTILE, about={HOSTILE: HOSTILE})
    outside = re.sub(r"(?ms)^(`{3,})text$.*?^\1$", "", text)
    assert "<" not in outside
    assert not re.search(r"(?<!\\)\[a", outside)
    assert set(_columns(outside)) >= {4, 7}


def _columns(text: str) -> list[int]:
    """The number of columns of each table; fails for a row that has another one than its head."""
    columns: list[int] = []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in table.splitlines()]
        assert len(set(widths)) == 1, table.splitlines()[0]
        assert set(table.splitlines()[1]) <= set("|:- ")
        columns.append(widths[0])
    return columns


def test_markdown_has_a_table_for_every_one_of_the_page() -> None:
    summary = example()
    tables = [b for s in evaluation_sections(summary) for b in s.blocks if isinstance(b, Table)]
    assert _columns(markdown_evaluation(summary, title="t", about={})) == [len(t.head) for t in tables]


@given(st.lists(st.text(), min_size=1, max_size=4), st.text())
def test_no_text_breaks_a_markdown_table(texts: list[str], caption: str) -> None:
    row = tuple(Cell(text, (text,)) for text in texts)
    table = Table("caption", tuple(texts), (row, row))
    made = markdown("t", "l", {}, [Section("s", caption, (table,))])
    assert _columns(made) == [len(texts)]
    assert "\n" not in escaped(caption)


def test_what_was_not_measured_says_how_to_get_it() -> None:
    summary = example() | {"comparisons": [], "worst_items": [], "frontier": None, "contamination": None}
    for found in summary["tasks"].values():
        for one in found.values():
            one |= {"ece": None, "brier": None, "bins": None, "variants": {}, "groups": None, "slices": {}}
            one |= {"worst_case": None, "pass_at": None, "cost": None, "tokens_per_s": None}
    for page in shown(summary).values():
        for said in (
            "second candidate",
            "log-probabilities",
            "`slice`",
            "`perturb`",
            "`group`",
            "`contamination`",
        ):
            assert said in page.replace("\\", "")
        assert "no routing can be replayed" in page
        assert "None" not in page
        assert "nan" not in page


def test_one_expert_on_one_task_is_no_competition() -> None:
    summary = example()
    summary["experts"] = ["base"]
    summary["tasks"] = {"mmlu": {"base": summary["tasks"]["mmlu"]["base"]}}
    summary |= {"comparisons": [], "frontier": None, "contamination": None}
    assert evaluation_headline(summary).title == "‘base’ on 1 task"
    assert "★ best" in shown(summary)["html"]
    assert "≈ 5" not in shown(summary)["html"]


def test_an_expert_that_did_not_answer_a_task_has_a_dash() -> None:
    summary = example()
    del summary["tasks"]["gsm8k"]["base"]
    row = next(line for line in shown(summary)["markdown"].splitlines() if line.startswith("| gsm8k, exact"))
    assert "| – |" in row


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ((), "frontier"),
        (("tasks", "mmlu", "base"), "ece"),
        (("overall", "tuned"), "low"),
        (("comparisons", 3), "p_corrected"),
        (("worst_items", 0), "answers"),
        (("frontier", "points", 1), "pool_gap"),
    ],
)
def test_a_missing_key_is_named_with_its_place(path: tuple[Any, ...], key: str) -> None:
    summary = copy.deepcopy(example())
    part: Any = summary
    for step in path:
        part = part[step]
    del part[key]
    with pytest.raises(DataError, match=f"'{key}'") as caught:
        render_evaluation(summary, title="t", about={})
    assert all(str(step) in str(caught.value) for step in path)


def test_an_empty_summary_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="lacks 'experts'"):
        render_evaluation({}, title="t", about={})
    with pytest.raises(DataError, match="no experts or no tasks"):
        render_evaluation(example() | {"tasks": {}}, title="t", about={})


def test_the_report_of_a_run_unfolds_into_its_evaluation() -> None:
    score = Candidate("tuned", Interval(0.6, 0.5, 0.7), 40, 0)
    absent = dict.fromkeys(("loss", "funnel", "timeline", "items", "cost"), "Nothing here.")
    for summary in (example(), None):
        evaluation = Evaluation("outcomes", (score,), (), summary)
        page = render(
            ReportData("r", "m", "", "finished", None, (), evaluations=(evaluation,), absent=absent)
        )
        assert ("By task: scores" in page) is (summary is not None)
        assert ("professional_<wbr>law" in page) is (summary is not None)


def test_what_costs_seconds_says_so() -> None:
    summary = example()
    summary["frontier"]["unit"] = "seconds"
    assert "No expert has a price" in shown(summary)["html"]
    for point in summary["frontier"]["points"]:
        point["cost"] = None
    assert "seconds for an item" not in shown(summary)["html"]


shares = st.integers(0, 1000).map(lambda n: n / 1000)
spots = st.builds(
    pictures.Spot,
    st.text("abcdefgh", min_size=1, max_size=40), st.just(0.0) | st.floats(1e-9, 1e3), shares,
    st.sampled_from(["expert", "baseline", "bound", "cascade"]), st.booleans(),
)  # fmt: skip


@given(
    st.lists(spots, min_size=1, max_size=20),
    st.lists(st.tuples(shares, shares), min_size=1, max_size=8),
    st.sampled_from([svg.WIDE, svg.NARROW]),
)
def test_pictures_stay_inside_their_frame(
    found: list[pictures.Spot], pairs: list[tuple[float, float]], width: float
) -> None:
    panels = [pictures.Reliability("x" * 60, a, ((9, a, b), (1, b, a))) for a, b in pairs]
    losses = [pictures.Loss("y" * 60, a, b) for a, b in pairs]
    drawn = [
        pictures.frontier_chart(found, width, "USD"),
        pictures.reliability_chart(panels, width),
        pictures.loss_bars(losses, width),
    ]
    for picture in drawn:
        root = ElementTree.fromstring(picture)
        high = float(root.attrib["height"])
        for circle in root.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= high
        for bar in root.iter("rect"):
            assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
