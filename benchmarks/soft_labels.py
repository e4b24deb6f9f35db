"""A student of a third of the layers on a teacher's probabilities, or on its answers alone: three seeds each.

python -m benchmarks.soft_labels --data DIR             # some 15 minutes on two CPUs

``DIR`` holds ``alpaca_en_demo.json`` of LLaMA-Factory's ``data`` folder. Both ways learn from the same rows,
tokens and steps, beginning with the same layers of the teacher; answers alone are ``alpha: 1``, which is
fine-tuning. Held-out prompts' answers are measured by KL(teacher, student) over the likeliest tokens and the
rest as one class, and by perplexity, each from a mean over rows of means over tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._manifest import save_manifest
from benchmarks._pairs import record

COMMAND = "python -m benchmarks.soft_labels --data DIR"
SEEDS = (0, 1, 2)
WAYS = {"soft": 0.1, "answers": 1.0}
"""By ``alpha``, the weight of the teacher's own tokens."""


def write_manifest(data: Path, folder: Path, prompts: int, layers: int) -> Path:
    taken = json.loads((data / "alpaca_en_demo.json").read_text(encoding="utf-8"))[:prompts]
    (folder / "rows.json").write_text(json.dumps(taken), encoding="utf-8")
    taught = {
        "kind": "teach",
        "prompts": "asked",
        "samples": 1,
        "keep": "all",
        "topk": 32,
        "split": {"test": 0.2},
    }
    trained = {"kind": "train", "data": "taught", "model": "small", "lora": None, "held_out_rows": 64}
    trained |= {"max_tokens": 256, "learning_rate": 0.0005, "epochs": 2}
    stages: list[dict[str, Any]] = [
        {"name": "asked", "kind": "dataset", "source": "rows.json", "split": {"test": 0.0}},
        taught | {"name": "taught", "teacher": {"temperature": 0.7, "max_tokens": 64}},
        {"name": "small", "kind": "student", "layers": layers},
    ]
    for way, alpha in WAYS.items():
        for seed in SEEDS:
            algorithm = {"name": "distill", "alpha": alpha}
            stages.append(trained | {"name": f"{way}-{seed}", "algorithm": algorithm, "seed": seed})
    return save_manifest(folder, "soft", stages)


def main() -> None:
    from train_jobs.commands import run_manifest

    parser = argparse.ArgumentParser(description="Soft labels against answers alone.")
    parser.add_argument("--data", type=Path, required=True, help="folder of alpaca_en_demo.json")
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--layers", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_manifest(options.data, folder, options.prompts, options.layers)
        made = run_manifest(manifest, str(folder / "forge")).artifacts
        found = {(w, s): made[f"{w}-{s}"].metrics for w in WAYS for s in SEEDS}
    after = {key: metrics["held_out"]["after"] for key, metrics in found.items()}
    before = found["soft", 0]["held_out"]["before"]
    shared: dict[str, Any] = {
        "equal": len({(m["steps"], m["tokens"], m["held_out"]["after"]["rows"]) for m in found.values()})
        == 1,
        "goal": "< 1",
        "command": COMMAND,
        "layers": options.layers,
        "held_out": before["rows"],
        "steps": found["soft", 0]["steps"],
    }
    record(
        "soft-kl",
        "held-out KL from the teacher, soft labels / answers alone",
        [[after["soft", s]["soft"], after["answers", s]["soft"]] for s in SEEDS],
        before=before["soft"],
        **shared,
    )
    record(
        "soft-perplexity",
        "held-out perplexity of the teacher's answers, soft labels / answers alone",
        [[math.exp(after[way, s]["hard"]) for way in WAYS] for s in SEEDS],
        before=math.exp(before["hard"]),
        **shared,
    )


if __name__ == "__main__":
    main()
