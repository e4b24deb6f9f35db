"""A fabricated evaluation of three experts on six tasks, in the shape that the evaluate stage writes."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

EXPERTS = {"base": 0.52, "tuned": 0.6, "tuned-int4": 0.59}
TASKS = {
    "mmlu": ("acc", 1000),
    "hellaswag": ("acc_norm", 2000),
    "arc_challenge": ("acc_norm", 1172),
    "truthfulqa_mc2": ("acc", 817),
    "gsm8k": ("exact_match", 1319),
    "support tickets": ("exact", 400),
}
FIELDS = (
    "biology chemistry computer_science european_history geography law macroeconomics mathematics medicine "
    "microeconomics physics psychology statistics accounting government_and_politics us_history "
    "world_history human_sexuality jurisprudence"
)
SUBJECTS = [f"{level}_{f}" for level in ("high_school", "college", "professional") for f in FIELDS.split()]
ABOUT = {"Stage": "outcomes", "Artifact": "0123456789abcdef", "Intervals": "95%"}
NOISE = "no difference beyond noise"


def example(seed: int = 0) -> dict[str, Any]:
    """What the evaluate stage writes for three experts and six tasks, one of them with 57 slices."""
    rng = random.Random(seed)
    tasks = {
        task: {name: _cell(rng, task, metric, n, skill) for name, skill in EXPERTS.items()}
        for task, (metric, n) in TASKS.items()
    }
    overall = {
        name: {
            **_interval(sum(found[name]["accuracy"] for found in tasks.values()) / len(tasks), 0.011),
            "n": sum(n for _, n in TASKS.values()),
            "cost": round(sum(found[name]["cost"] for found in tasks.values()), 4),
            "seconds": sum(found[name]["seconds"] for found in tasks.values()),
        }
        for name in EXPERTS
    }
    return {
        "experts": list(EXPERTS),
        "tasks": tasks,
        "overall": overall,
        "comparisons": [
            _comparison(rng, task, a, b, overall if task == "all" else tasks[task])
            for task in ("all", *TASKS)
            for b, a in combinations(EXPERTS, 2)
        ],
        "worst_items": [_item(rng, number) for number in range(4)],
        "frontier": _frontier(rng),
        "contamination": {
            "gsm8k": {
                name: {"marked": 17 + i, "accuracy_with": 0.412 + i / 50, "accuracy_without": 0.398 + i / 50}
                for i, name in enumerate(EXPERTS)
            }
        },
    }


def _interval(mean: float, half: float) -> dict[str, float]:
    return {"accuracy": mean, "low": mean - half, "high": mean + half}


def _cell(rng: random.Random, task: str, metric: str, n: int, skill: float) -> dict[str, Any]:
    accuracy = skill + rng.uniform(-0.15, 0.15)
    own = task == "support tickets"
    bins = [
        {"n": rng.randrange(20, n // 4), "confidence": (b + 0.5) / 10, "quality": min((b + 0.2) / 11, 1)}
        for b in range(2, 10)
    ]
    changed = {
        name: accuracy - drop for name, drop in {"typos": 0.043, "case": 0.008, "options": 0.061}.items()
    }
    return {
        "metric": metric,
        "n": n,
        **_interval(accuracy, 0.49 / n**0.5),
        "errors": 3 if own else 0,
        "ece": None if own else rng.uniform(0.02, 0.2),
        "brier": None if own else rng.uniform(0.15, 0.25),
        "bins": [] if own else bins,
        "scores": {metric: accuracy} | ({"acc_norm": accuracy + 0.0123} if metric == "acc" else {}),
        "prompt_tokens": n * 311,
        "completion_tokens": n * 17,
        "seconds": n * 0.731,
        "cost": round(n * 0.00021 * skill, 6),
        "tokens_per_s": rng.uniform(30, 90),
        "worst_case": accuracy - 0.111 if task == "mmlu" else None,
        "variants": {
            name: {"n": n, **_interval(value, 0.03), "drop": accuracy - value}
            for name, value in changed.items()
        } if task == "mmlu" else {},
        "groups": {
            name: {"n": 100 + i, **_interval(accuracy + i / 40, 0.08)}
            for i, name in enumerate(("da", "en", "fi"))
        } if own else {},
        "slices": {
            name: {"n": 17 + i % 5, "accuracy": min(max(skill + rng.uniform(-0.4, 0.4), 0), 1)}
            for i, name in enumerate(SUBJECTS)
        } if task == "mmlu" else {},
        "pass_at": {"1": accuracy, "8": accuracy + 0.0717} if task == "gsm8k" else None,
    }  # fmt: skip


def _comparison(rng: random.Random, task: str, a: str, b: str, found: dict[str, Any]) -> dict[str, Any]:
    gain = found[a]["accuracy"] - found[b]["accuracy"]
    clear = abs(gain) > 0.03
    p = rng.uniform(1e-4, 0.001) if clear else rng.uniform(0.2, 0.9)
    size = abs(gain)
    better = f"{a if gain > 0 else b} is better by {size:+.3f} [{size - 0.02:.3f}, {size + 0.02:.3f}]"
    n = found[a]["n"]
    made = {"task": task, "a": a, "b": b, "n": n, "difference": gain, "low": gain - 0.02, "high": gain + 0.02}
    return made | {"p": p, "p_corrected": min(p * 3, 1.0), "verdict": better if clear else NOISE}


def _item(rng: random.Random, number: int) -> dict[str, Any]:
    steps = "First I count the boxes on the left, then those on the right, and add both. " * (number * 4)
    return {
        "task": "gsm8k",
        "item_id": f"gsm8k/{number * 17}",
        "prompt": "Question: A shop packs 24 jars in a box. How many jars are in 17 boxes?\nAnswer:",
        "answers": {
            name: {"answer": f"{steps}#### {rng.randrange(300, 500)}", "quality": float(i == number)}
            for i, name in enumerate(EXPERTS)
        },
    }


def _frontier(rng: random.Random) -> dict[str, Any]:
    points = []

    def add(kind: str, name: str, quality: float, cost: float, best: bool, calls: dict[str, float]) -> None:
        span = {"low": quality - 0.012, "high": quality + 0.012}
        lost = {"misrouted": 0.81 - quality, "pool_gap": 0.19}
        seconds = rng.uniform(0.4, 0.9)
        made = {"kind": kind, "name": name, "quality": quality, **span, "cost": cost, "seconds": seconds}
        points.append(made | {"calls": calls, **lost, "undominated": best})

    add("expert", "base", 0.521, 0.000021, True, {"base": 1.0, "tuned": 0.0, "tuned-int4": 0.0})
    add("expert", "tuned", 0.604, 0.000213, False, {"base": 0.0, "tuned": 1.0, "tuned-int4": 0.0})
    add("expert", "tuned-int4", 0.597, 0.000117, False, {"base": 0.0, "tuned": 0.0, "tuned-int4": 1.0})
    add("baseline", "random", 0.571, 0.000117, False, dict.fromkeys(EXPERTS, 0.333))
    add("baseline", "best single", 0.604, 0.000213, False, {"base": 0.0, "tuned": 1.0, "tuned-int4": 0.0})
    add("baseline", "best by task", 0.641, 0.000172, True, {"base": 0.25, "tuned": 0.5, "tuned-int4": 0.25})
    add("bound", "oracle", 0.81, 0.000083, False, {"base": 0.521, "tuned": 0.2, "tuned-int4": 0.279})
    for step in range(1, 10):
        quality, cost = 0.521 + 0.1 * (step / 10) ** 0.5, 0.000021 + 0.00003 * step
        add("cascade", f"{step / 10:.3f}", quality, cost, step < 6, {"base": 1.0, "tuned-int4": step / 10})
    return {"unit": "cost", "n": 6708, "experts": list(EXPERTS), "points": points}
