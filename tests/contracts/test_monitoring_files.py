"""Prometheus takes its files, and they ask for metrics that are exported, by labels that these have."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contracts._cluster import FOLDER, check_fields, of_kind
from tests.unit.test_dashboard import METRICS, SUFFIXES, base

RAY = Path(importlib.util.find_spec("ray").origin).parent
NODES = (RAY / "dashboard/modules/reporter/reporter_agent.py").read_text(encoding="utf-8")
AUTOSCALER = (RAY / "autoscaler/_private/prom_metrics.py").read_text(encoding="utf-8")
ALERTS = yaml.safe_load((FOLDER / "monitoring/alerts.yml").read_text(encoding="utf-8"))
PROMETHEUS = yaml.safe_load((FOLDER / "monitoring/prometheus.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])

FUNCTIONS = {"sum", "min", "max", "avg", "count", "rate", "increase", "histogram_quantile"}
OPERATORS = {"and", "or", "unless", "bool"}
TARGET_LABELS = {"job", "instance"}
DURATION = r"\d+(?:ms|[smhdwy])"


def parts(query: str) -> tuple[set[str], set[str], set[str]]:
    """Metrics, labels and functions of a PromQL expression; fails on what is not balanced."""
    text = re.sub(r'"[^"]*"', '""', query)
    for opening, closing in ("()", "{}", "[]"):
        assert text.count(opening) == text.count(closing), query
    labels = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*""', text))
    text = re.sub(r"\{[^}]*\}", "", text)
    for group in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", text):
        labels |= set(re.findall(r"\w+", group))
    text = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", text)
    text = re.sub(rf"\[{DURATION}\]", "", text)
    assert "[" not in text, f"a range is a number and a unit: {query}"
    functions = set(re.findall(r"\b([a-z_]\w*)\s*\(", text))
    words = set(re.findall(r"\b[a-zA-Z_:][\w:]*", text))
    return words - functions - OPERATORS, labels, functions


def labels_of(metric: str) -> set[str]:
    """The labels that a metric has; fails if nothing exports it."""
    own = metric.removeprefix("ray_")
    if metric == "up":
        return TARGET_LABELS
    if metric.startswith("ray_largeforge_"):
        kind, labels = METRICS[base(own)]
        assert own.removeprefix(base(own)) in SUFFIXES[kind], f"{metric} is a {kind}"
        return labels | ({"le"} if metric.endswith("_bucket") else set()) | TARGET_LABELS
    if metric.startswith("autoscaler_"):
        assert f'"{metric.removeprefix("autoscaler_")}"' in AUTOSCALER, metric
        return {"NodeType"} | TARGET_LABELS
    assert metric != own, f"{metric}: what Ray exports begins with ray_"
    assert f'"{own}"' in NODES, metric
    return TARGET_LABELS


@EACH_RULE
def test_an_alert_asks_for_metrics_that_are_exported_by_labels_that_they_have(rule: dict[str, Any]) -> None:
    metrics, labels, functions = parts(rule["expr"])
    assert metrics
    assert functions <= FUNCTIONS
    assert labels <= set.union(*(labels_of(metric) for metric in metrics))
    shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    by = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
    kept = set(re.findall(r"\w+", by[0])) if by else TARGET_LABELS
    assert shown <= kept, "a label that the expression drops is shown as nothing"


@pytest.mark.parametrize(
    "query", ["sum(rate(ray_node_mem_used[5m])", "rate(ray_largeforge_queue[5])", 'x{a="b"']
)
def test_a_query_that_is_cut_off_or_has_no_unit_is_found(query: str) -> None:
    with pytest.raises(AssertionError):
        parts(query)


@pytest.mark.parametrize("metric", ["ray_largeforge_queue_total", "ray_node_mem_usd", "node_mem_used"])
def test_a_metric_that_nothing_exports_is_found(metric: str) -> None:
    with pytest.raises(AssertionError):
        labels_of(metric)


@EACH_RULE
def test_an_alert_says_how_bad_it_is_what_it_means_and_waits_for_more_than_a_moment(
    rule: dict[str, Any],
) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(DURATION, rule["for"]) if "for" in rule else "increase(" in rule["expr"]


def test_prometheus_and_its_operator_take_the_same_rules() -> None:
    check_fields(ALERTS, "PrometheusRuleSpec")
    (operator,) = of_kind("PrometheusRule")
    assert operator.body["spec"] == ALERTS
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)


def test_prometheus_loads_the_rules_and_finds_the_nodes_where_ray_lists_them() -> None:
    check_fields(PROMETHEUS, "Prometheus")
    assert all((FOLDER / "monitoring" / file).exists() for file in PROMETHEUS["rule_files"])
    theirs = yaml.safe_load((RAY / "dashboard/modules/metrics/export/prometheus/prometheus.yml").read_text())
    ours, rays = PROMETHEUS["scrape_configs"][0], theirs["scrape_configs"][0]
    assert ours["file_sd_configs"] == rays["file_sd_configs"]


def test_nodes_are_scraped_under_the_name_that_the_alerts_ask_for() -> None:
    asked = set(re.findall(r'job="(\w+)"', str([rule["expr"] for rule in RULES])))
    assert asked == {config["job_name"] for config in PROMETHEUS["scrape_configs"]}
    (monitor,) = of_kind("PodMonitor")
    for end in monitor.body["spec"]["podMetricsEndpoints"]:
        jobs = {each["replacement"] for each in end["relabelings"] if each["targetLabel"] == "job"}
        assert jobs == asked
