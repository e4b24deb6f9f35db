"""What outcome rows say, as ``evaluation.json``: the report shows it, the gate and the frontier read it.

R outcome rows, U items, N items of the matrix, E experts.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from largeforge_ray.evaluate.bootstrap import Interval, interval
from largeforge_ray.evaluate.calibration import calibrate
from largeforge_ray.evaluate.compare import compare_experts
from largeforge_ray.evaluate.matrix import Columns, Floats, Matrix, Whole, build_matrix, read_columns
from largeforge_ray.evaluate.replay import frontier
from largeforge_ray.evaluate.scoring import pass_at_k

WORST_ITEMS = 20
SHOWN_CHARACTERS = 2000
PASS_AT = (1, 10, 100)
"""As in Chen et al. 2021, besides the number of samples there are."""


def summarise(
    rows: Iterable[Mapping[str, Any]],
    *,
    confidence: float,
    seed: int = 0,
    baseline: str | None = None,
    prompts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Tasks, overall, comparisons, worst items and frontier, JSON-able; ``contamination`` is left to others.

    ``rows`` is read twice, so a file larger than memory is given as something that opens it anew each time.
    ``prompts`` maps an item's hash to its text, for the items shown. ``accuracy`` is mean quality over items,
    each the mean of its samples; tokens, seconds, cost and errors are sums over all that was asked, variants
    too, and a cost is None if an answer's is unknown.

    Raises ``DataError`` if an expert has no outcomes of a task it answered variants of.
    """
    rows = list(rows) if isinstance(rows, Iterator) else rows
    scores: dict[tuple[str, str], dict[str, array[float]]] = {}
    columns = read_columns(_collected(rows, scores))
    matrix = build_matrix(columns, prompts)
    cells: dict[tuple[str, str], Columns] = {}
    for task in columns.present("task"):
        of_task = columns.take(columns.of("task", task))
        for expert in of_task.present("expert"):
            cells[task, expert] = of_task.take(of_task.of("expert", expert))
    tasks: dict[str, dict[str, Any]] = {}
    for (task, expert), part in cells.items():
        means = {metric: math.fsum(values) / len(values) for metric, values in scores[task, expert].items()}
        tasks.setdefault(task, {})[expert] = _cell(part, confidence, seed) | {"scores": means}
    complete = matrix.complete()
    routable = len(matrix.experts) > 1 and len(complete.items) > 1
    return {
        "experts": list(matrix.experts),
        "tasks": tasks,
        "overall": {expert: _overall(expert, cells, confidence, seed) for expert in matrix.experts},
        "comparisons": _comparisons(matrix, confidence, seed, baseline),
        "worst_items": _worst_items(matrix, rows),
        "frontier": frontier(complete, confidence=confidence, seed=seed) if routable else None,
        "contamination": None,
    }


def _collected(
    rows: Iterable[Mapping[str, Any]], scores: dict[tuple[str, str], dict[str, array[float]]]
) -> Iterator[Mapping[str, Any]]:
    """The rows as they pass, while ``scores`` fills with each metric's values."""
    for row in rows:
        mine = scores.setdefault((row["task"], row["expert"]), {})
        if row.get("variant") is None and row.get("scores"):
            for metric, value in json.loads(row["scores"]).items():
                mine.setdefault(metric, array("d")).append(value)
        yield row


def _cell(part: Columns, confidence: float, seed: int) -> dict[str, Any]:
    """Of one expert on one task."""
    plain = part.take(part.of("variant", None))
    numbers, (items_U, quality_U) = part.numbers_R, plain.by_item()
    tokens, seconds = int(np.nansum(numbers["completion_tokens"])), float(np.nansum(numbers["seconds"]))
    return {
        "metric": next(iter(plain.present("metric")), None),
        **_accuracy(quality_U, confidence, seed),
        "errors": int(part.failed_R.sum()),
        **calibrate(plain.numbers_R["confidence"], plain.numbers_R["quality"]),
        "prompt_tokens": int(np.nansum(numbers["prompt_tokens"])),
        "completion_tokens": tokens,
        "seconds": seconds,
        "cost": _spent(numbers["cost"]),
        "tokens_per_s": tokens / seconds if seconds > 0 else None,
        **_variants(part, items_U, quality_U, confidence, seed),
        "groups": _by(plain, "group", confidence, seed),
        "slices": _by(plain, "slice", confidence, seed),
        "pass_at": _pass_at(plain),
    }


def _spent(cost_R: Floats) -> float | None:
    """None unless every answer's is known: a part of a bill is no bill."""
    return None if np.isnan(cost_R).any() else float(cost_R.sum())


def _accuracy(quality_U: Floats, confidence: float, seed: int) -> dict[str, Any]:
    return _shown(interval([quality_U], confidence=confidence, seed=seed))


def _shown(found: Interval) -> dict[str, Any]:
    return {"n": found.n, "accuracy": found.mean, "low": found.low, "high": found.high}


def _by(plain: Columns, field: str, confidence: float, seed: int) -> dict[str, Any]:
    parts = {name: plain.take(plain.of(field, name)) for name in plain.present(field)}
    return {name: _accuracy(part.by_item()[1], confidence, seed) for name, part in parts.items()}


def _variants(
    part: Columns, items_U: Whole, quality_U: Floats, confidence: float, seed: int
) -> dict[str, Any]:
    """Accuracy on each perturbation and its drop on the same items, and that of each item's worst form."""
    made: dict[str, Any] = {}
    worst: dict[int, float] = {}
    plain = dict(zip(items_U.tolist(), quality_U.tolist(), strict=True))
    for name in part.present("variant"):
        there, varied = part.take(part.of("variant", name)).by_item()
        drops = [plain[i] - q for i, q in zip(there.tolist(), varied.tolist(), strict=True) if i in plain]
        drop = math.fsum(drops) / len(drops) if drops else None
        made[name] = _accuracy(varied, confidence, seed) | {"drop": drop}
        for i, q in zip(there.tolist(), varied.tolist(), strict=True):
            worst[i] = min(q, worst.get(i, plain.get(i, 1.0)))
    return {"variants": made, "worst_case": math.fsum(worst.values()) / len(worst) if worst else None}


def _pass_at(plain: Columns) -> dict[str, float]:
    """Of items with several samples; a sample passes with quality 1."""
    _, place_R = np.unique(plain.codes_R["origin"], return_inverse=True)
    samples_U = np.bincount(place_R)
    right_U = np.bincount(place_R, plain.numbers_R["quality"] >= 1.0).astype(int)
    least = int(samples_U.min())
    if least < 2:
        return {}
    counts = list(zip(samples_U.tolist(), right_U.tolist(), strict=True))
    return {
        str(k): math.fsum(pass_at_k(n, c, k) for n, c in counts) / len(counts)
        for k in sorted({*PASS_AT, least})
        if k <= least
    }


def _overall(
    expert: str, cells: Mapping[tuple[str, str], Columns], confidence: float, seed: int
) -> dict[str, Any]:
    """Every task weighs the same."""
    mine = [part for (_, name), part in cells.items() if name == expert]
    quality = [part.take(part.of("variant", None)).by_item()[1] for part in mine]
    spent = {
        "cost": _spent(np.concatenate([part.numbers_R["cost"] for part in mine])),
        "seconds": float(sum(np.nansum(part.numbers_R["seconds"]) for part in mine)),
    }
    return _shown(interval(quality, confidence=confidence, seed=seed)) | spent


def _comparisons(matrix: Matrix, confidence: float, seed: int, baseline: str | None) -> list[dict[str, Any]]:
    """By task, then over all of them; each task's pairs are corrected together."""
    tasks = np.array(matrix.tasks)
    parts = [(task, matrix.take(tasks == task)) for task in sorted(set(matrix.tasks))]
    return [
        {"task": task} | asdict(one)
        for task, part in [*parts, ("all", matrix)]
        for one in compare_experts(part, confidence=confidence, seed=seed, baseline=baseline)
    ]


def _worst_items(matrix: Matrix, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Where experts differ most, and where all fail: half of each, if there are enough."""
    filled_NE = matrix.quality_NE
    most_N, least_N = np.nanmax(filled_NE, axis=1), np.nanmin(filled_NE, axis=1)
    apart = [int(i) for i in np.argsort(least_N - most_N, kind="stable") if most_N[i] > least_N[i]]
    failed = [int(i) for i in np.flatnonzero(most_N == 0)]
    half = WORST_ITEMS // 2
    apart = apart[: max(half, WORST_ITEMS - len(failed))]
    shown: dict[str, dict[str, Any]] = {
        matrix.items[i]: {"task": matrix.tasks[i], "item_id": None, "answers": {}}
        | ({"prompt": matrix.prompts[i]} if matrix.prompts[i] else {})
        for i in [*apart, *failed[: WORST_ITEMS - len(apart)]]
    }
    for row in rows:
        item = shown.get(row.get("origin") or row["item_hash"])
        if item is not None and row.get("variant") is None and row["expert"] not in item["answers"]:
            item["item_id"] = row["item_id"]
            answer = (row.get("answer") or "")[:SHOWN_CHARACTERS]
            item["answers"][row["expert"]] = {"answer": answer, "quality": row["quality"]}
    return list(shown.values())
