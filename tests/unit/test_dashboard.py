"""The Grafana dashboard asks for what the code exports, and is what Grafana loads."""

from __future__ import annotations

import ast
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster/monitoring/grafana-largeforge.json").read_text(encoding="utf-8"))
PANELS = DASHBOARD["panels"]
SHOWING = [panel for panel in PANELS if panel["type"] != "row"]
TARGETS = [(panel["title"], target["expr"]) for panel in SHOWING for target in panel["targets"]]
ASKED = [*TARGETS, *((one["name"], one["expr"]) for one in DASHBOARD["annotations"]["list"])]
VARIABLE = next(one for one in DASHBOARD["templating"]["list"] if one["name"] == "expert")
SUFFIXES = {"Counter": {"_total"}, "Gauge": {""}, "Histogram": {"_bucket", "_sum", "_count"}}
WIDTH = 24
"""Of Grafana's grid, in columns."""


def exported() -> dict[str, tuple[str, set[str]]]:
    """Name -> kind and labels of each metric that a statement of serve_apps makes."""
    found = {}
    for path in (ROOT / "serve_apps").glob("*.py"):
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(statement, ast.Assign):
                continue
            for call in (node for node in ast.walk(statement) if isinstance(node, ast.Call)):
                kind = ast.unparse(call.func)
                if kind in SUFFIXES:
                    labels = {word.arg: _strings(word.value) for word in call.keywords}.get("tag_keys", set())
                    names = {text for text in _strings(statement) if re.fullmatch(r"largeforge_\w+", text)}
                    found.update(dict.fromkeys(names, (kind, labels)))
    return found


def _strings(node: ast.AST) -> set[str]:
    inside = ast.walk(node)
    return {one.value for one in inside if isinstance(one, ast.Constant) and isinstance(one.value, str)}


# Named here until a statement of serve_apps makes them.
AGREED: dict[str, tuple[str, set[str]]] = {
    "largeforge_queue": ("Gauge", {"expert"}),
    "largeforge_replicas": ("Gauge", {"model"}),
    "largeforge_accepted_tokens": ("Counter", {"model"}),
    "largeforge_drafted_tokens": ("Counter", {"model"}),
    "largeforge_promotions": ("Counter", {"expert", "to"}),
}
METRICS = AGREED | exported()


def names(query: str) -> list[str]:
    """The metrics of a query, without the exporter's prefix."""
    return re.findall(r"\bray_(largeforge_\w+)", query)


def base(asked: str) -> str:
    """``largeforge_tokens_total`` -> ``largeforge_tokens``, the name that the code gives it."""
    return re.sub(r"_(total|bucket|sum|count)$", "", asked)


@pytest.mark.parametrize(("title", "query"), ASKED, ids=[title for title, _ in ASKED])
def test_a_panel_asks_for_a_metric_that_is_exported_by_labels_that_it_has(title: str, query: str) -> None:
    assert names(query), f"'{title}' asks for nothing"
    used = {label for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(", ")}
    used |= set(re.findall(r'(\w+)(?:=|!=|=~|!~)"', query))
    for asked in names(query):
        assert base(asked) in METRICS, f"'{title}' asks for {asked}, which serve_apps does not export"
        kind, labels = METRICS[base(asked)]
        assert asked.removeprefix(base(asked)) in SUFFIXES[kind]
        assert used - (labels | {"le"} if kind == "Histogram" else labels) == set()
    assert query.count("(") == query.count(")")


def test_every_exported_metric_is_on_a_panel() -> None:
    shown = {base(name) for _, query in TARGETS for name in names(query)}
    assert set(METRICS) - shown == set()


def test_the_choice_of_experts_comes_from_an_exported_metric() -> None:
    metric, label = re.fullmatch(r"label_values\(ray_(\w+), (\w+)\)", VARIABLE["query"]["query"]).groups()
    assert label in METRICS[base(metric)][1]


def test_every_query_goes_to_the_chosen_data_source() -> None:
    chosen = DASHBOARD["templating"]["list"][0]
    assert (chosen["name"], chosen["type"], chosen["query"]) == ("datasource", "datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    asking: list[dict[str, Any]] = [VARIABLE, *DASHBOARD["annotations"]["list"]]
    for panel in SHOWING:
        asking += [panel, *panel["targets"]]
    assert [one for one in asking if one["datasource"] != source] == []


def test_grafana_finds_what_it_needs_to_load_it() -> None:
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["title"]
    assert "id" not in DASHBOARD, "a number of another Grafana's database"
    assert DASHBOARD["schemaVersion"] >= 36, "data sources by type and uid came with 36"
    assert all(panel["title"] and panel["type"] in ("row", "stat", "timeseries") for panel in PANELS)
    for panel in SHOWING:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in ("reqps", "s", "short", "percentunit")
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters) > 0


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= WIDTH
    for one, other in combinations(PANELS, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y, f"'{one['title']}' lies on '{other['title']}'"
