"""Router policies ranked on one outcome matrix, without asking any expert again.

python -m benchmarks.outcome_matrix --data FOLDER --limit 1000   # minutes; FOLDER holds routellm_*.jsonl

P20-matrix  Five random splits, each prompt held out in one of them. An answer of the weak expert costs 1, of
            the strong one 10. Policies that score prompts send the half of each split with the highest scores
            to the strong expert, so they cost what lots cost and differ in quality alone; APGR and the calls
            that close a share of the gap judge the scores at every budget. These files have no confidences,
            so there is no cascade; a matrix with them has one at the same share of calls.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks._pairs import write_down
from benchmarks.router_quality import RANDOM, SPLITS, distilled, held_out_predictions, measured

COMMAND = "python -m benchmarks.outcome_matrix --data FOLDER"
PRICES = (1.0, 10.0)
CONFIDENCE = 0.95


def load(path: Path, limit: int | None) -> Any:
    """The matrix of a file, the weak expert first, of ``limit`` items drawn at random."""
    import dataclasses

    import numpy as np

    from largeforge_ray.evaluate.matrix import CELLS, read_matrix_jsonl

    matrix = read_matrix_jsonl(path).complete()
    if limit is not None and limit < len(matrix.items):
        matrix = matrix.take(np.sort(np.random.default_rng(0).permutation(len(matrix.items))[:limit]))
    order = np.argsort(matrix.quality_NE.mean(axis=0))
    cells = {f"{field}_NE": getattr(matrix, f"{field}_NE")[:, order] for field in CELLS}
    experts = tuple(matrix.experts[e] for e in order)
    return dataclasses.replace(matrix, experts=experts, **cells).priced(PRICES)


def by_task(matrix: Any, outs: list[Any]) -> Any:
    """As scores, each expert's mean on the item's task in the other splits."""
    import numpy as np

    tasks, score_NE = np.array(matrix.tasks), np.zeros(matrix.quality_NE.shape)
    for out in outs:
        learnt = np.setdiff1d(np.arange(len(tasks)), out)
        overall = matrix.quality_NE[learnt].mean(axis=0)
        for task in set(tasks[out]):
            there = learnt[tasks[learnt] == task]
            mean = matrix.quality_NE[there].mean(axis=0) if len(there) else overall
            score_NE[out[tasks[out] == task]] = mean
    return score_NE


def by_keyword(matrix: Any, outs: list[Any]) -> tuple[Any, Any]:
    """Scores, and the policy's choices: the strong expert's territory is what it alone had right."""
    import numpy as np

    from largeforge_ray.evaluate.replay import decide_all
    from largeforge_ray.routing.experts import EngineOptions, Expert, PolicyConfig, Price, Territory
    from largeforge_ray.routing.keyword import KeywordScorer
    from largeforge_ray.routing.policy import Policy
    from largeforge_ray.routing.territory import territory_keywords

    weak, strong = matrix.experts
    score_NE = np.zeros(matrix.quality_NE.shape)
    chosen_N = np.zeros(len(matrix.items), int)
    for out in outs:
        learnt = matrix.take(np.setdiff1d(np.arange(len(matrix.items)), out))
        gained = learnt.quality_NE[:, 1] > learnt.quality_NE[:, 0]
        words = territory_keywords(learnt.take(gained).prompts, background=learnt.take(~gained).prompts)
        experts = tuple(
            Expert(
                name,
                "live",
                name,
                EngineOptions(4096),
                price=Price(0.0, price),
                territory=Territory((), known),
            )
            for name, price, known in zip((weak, strong), PRICES, ({}, words), strict=True)
        )
        scorer, held_out = KeywordScorer(experts), matrix.take(out)
        score_NE[out, 1] = [scorer.score(prompt)[0][strong] for prompt in held_out.prompts]
        chosen_N[out] = decide_all(Policy(PolicyConfig("keyword", weak), experts, scorer), held_out)[0]
    return score_NE, chosen_N


def dearest_half(difference_N: Any, outs: list[Any]) -> Any:
    """The strong expert for the half of each split with the highest scores."""
    import numpy as np

    chosen_N = np.zeros(len(difference_N), int)
    for out in outs:
        chosen_N[out[np.argsort(-difference_N[out], kind="stable")[: len(out) // 2]]] = 1
    return chosen_N


def rank(matrix: Any, embed: Any) -> dict[str, dict[str, Any]]:
    """What each policy comes to, best first."""
    import numpy as np

    from largeforge_ray.evaluate.replay import baselines, budget_gain, choose, replay

    outs, scores = held_out_predictions(list(matrix.prompts), matrix.quality_NE.astype(np.float32), embed)
    scores["task"] = by_task(matrix, outs)
    scores["keyword"], keyword_N = by_keyword(matrix, outs)
    if np.isfinite(matrix.confidence_NE[:, 0]).all():
        scores["cascade"] = np.stack([matrix.confidence_NE[:, 0], np.ones(len(matrix.items))], axis=1)
    folds_N = np.zeros(len(matrix.items), int)
    for number, out in enumerate(outs):
        folds_N[out] = number
    made = {f"only {name}": (choose(matrix, e), None) for e, name in enumerate(matrix.experts)}
    made |= {name: (shares, None) for name, shares in baselines(matrix, folds_N).items()}
    made["keyword policy"] = (choose(matrix, keyword_N), None)
    for name, score_NE in scores.items():
        shares = choose(matrix, dearest_half(score_NE[:, 1] - score_NE[:, 0], outs))
        # A cascade has paid for the weak answer before it asks the strong expert.
        made[f"half by {name}"] = (shares, np.maximum(shares, [1.0, 0.0]) if name == "cascade" else None)
    found = {}
    for name, (shares, asked) in made.items():
        one = replay(matrix, shares, asked_NE=asked, confidence=CONFIDENCE)
        interval = [round(one.quality.low, 4), round(one.quality.high, 4)]
        numbers = {"quality": one.quality.mean, "cost": one.cost, "misrouted": one.misrouted}
        rounded = {key: round(value, 4) for key, value in numbers.items() if value is not None}
        found[name] = rounded | {"interval": interval, "pool_gap": round(one.pool_gap, 4), "calls": one.calls}
    for name, score_NE in (scores | {"oracle": matrix.quality_NE}).items():
        splits = [(score_NE[out, 1] - score_NE[out, 0], matrix.quality_NE[out]) for out in outs]
        gain = budget_gain([(score_NE[out], matrix.quality_NE[out]) for out in outs], PRICES)
        place = name if name in found else f"half by {name}"
        found[place] |= {"ranking": measured(splits), "budget_gain": gain}
    found["random"]["ranking"] = RANDOM
    return dict(sorted(found.items(), key=lambda each: -each[1]["quality"]))


def show(found: dict[str, dict[str, Any]]) -> None:
    heads = f"{'policy':28}{'quality':>8}  {'95%':14}{'cost':>7}{'misrouted':>11}{'pool gap':>10}{'APGR':>7}"
    print(f"{heads}  calls for 50/80/95%")
    for name, one in found.items():
        low, high = one["interval"]
        spent = f"{one['cost']:7.2f}{one['misrouted']:11.3f}{one['pool_gap']:10.3f}"
        print(f"{name:28}{one['quality']:8.3f}  [{low:.3f}, {high:.3f}]{spent}", end="")
        if ranking := one.get("ranking"):
            calls = " / ".join(f"{x:.2f}" for x in ranking["calls"].values())
            print(f"{ranking['apgr']:7.3f}  {calls}", end="")
        print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Router policies ranked on one outcome matrix.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--limit", type=int, help="Items of each file, drawn at random; all of them if left out."
    )
    options = parser.parse_args()
    embed = distilled()
    made = []
    for path in sorted(options.data.glob("routellm_*.jsonl")):
        matrix = load(path, options.limit)
        print(f"{path.stem}: {len(matrix.items)} items, {SPLITS} splits", flush=True)
        found = rank(matrix, embed)
        show(found)
        ours, lots = found["half by blend"], found["random"]
        made.append(
            {"task": path.stem.removeprefix("routellm_"), "items": len(matrix.items), "policies": found}
            | {"ratio": round(ours["quality"] / lots["quality"], 3)}
        )
    what = "quality of the shipped learned router / of lots at the same cost, replayed from outcomes"
    command = COMMAND if options.limit is None else f"{COMMAND} --limit {options.limit}"
    write_down(
        "P20-matrix", {"id": "P20-matrix", "what": what, "equal": True, "ratios": made}, command=command
    )


if __name__ == "__main__":
    main()
