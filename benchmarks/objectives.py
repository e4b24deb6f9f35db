"""Does every algorithm move what it is for? Figures on held-out real rows, before training and after.

python -m benchmarks.objectives --data DIR        # some twenty minutes on two CPUs

``DIR`` holds the demo sets of LLaMA-Factory's ``data`` folder: ``alpaca_en_demo.json``,
``dpo_en_demo.json`` and ``kto_en_demo.json``. The packaged model is trained on what of them is short enough.

What an algorithm is for is its loss; beside it stands the share of held-out rows that are on the right
side, with Wilson's interval (1927). DPO and KTO measure the distance from the model before training, so
before it no row is on any side.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._manifest import save_manifest
from benchmarks._pairs import write_down

COMMAND = "python -m benchmarks.objectives --data DIR"
PAIRS = {"data": "pairs", "max_tokens": 512, "batch_size": 4, "epochs": 2}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"data": "chats", "max_tokens": 256},
    "dpo": PAIRS,
    "kto": {"data": "judged", "max_tokens": 384, "epochs": 2},
    "orpo": PAIRS,
    "simpo": PAIRS,
    "reward": PAIRS,
}
DATASETS = {
    "chats": ("alpaca_en_demo.json", 800, 0.1),  # some 500 of these rows fit and are not held out
    "pairs": ("dpo_en_demo.json", 300, 0.4),
    "judged": ("kto_en_demo.json", 300, 0.35),
}
"""File, rows of it from the first on, share held out."""
CONFIDENT = 1.96
"""Standard deviations of a normal distribution that hold 95 of 100."""


def write_manifest(data: Path, folder: Path) -> Path:
    stages: list[dict[str, Any]] = []
    for name, (file, rows, share) in DATASETS.items():
        taken = json.loads((data / file).read_text(encoding="utf-8"))[:rows]
        (folder / file).write_text(json.dumps(taken), encoding="utf-8")
        stages.append({"name": name, "kind": "dataset", "source": file, "split": {"test": share}})
    shared = {"kind": "train", "held_out_rows": 48, "probe": False}
    stages += [shared | {"name": f"{a}-moved", "algorithm": a} | given for a, given in STAGES.items()]
    return save_manifest(folder, "objectives", stages)


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of ``n``."""
    z2 = CONFIDENT**2
    middle, half = share + z2 / (2 * n), CONFIDENT * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


def summarise(algorithm: str, metrics: dict[str, Any]) -> dict[str, Any]:
    before, after = metrics["held_out"]["before"], metrics["held_out"]["after"]
    row = {
        "algorithm": algorithm,
        "rows": metrics["rows"],
        "left_out": metrics["left_out"],
        "steps": metrics["steps"],
        "held_out": after["rows"],
        "loss": [before["loss"], after["loss"]],
        "moved": after["loss"] < before["loss"],
    }
    if "accuracy" in after:
        sided = None if algorithm in ("dpo", "kto") else before["accuracy"]
        low, high = wilson(after["accuracy"], after["rows"])
        row |= {"accuracy": [sided, after["accuracy"]], "interval": [round(low, 3), round(high, 3)]}
    return row


def show(rows: list[dict[str, Any]]) -> None:
    print(
        "| | rows (too long) | steps | held out | loss before | after | right before | after, 95% interval |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        sides = "| | "
        if "accuracy" in r:
            before, after = r["accuracy"]
            sides = f"| {'' if before is None else f'{before:.2f}'} | "
            sides += f"{after:.2f} [{r['interval'][0]:.2f}, {r['interval'][1]:.2f}]"
        facts = f"{r['rows']} ({r['left_out']}) | {r['steps']} | {r['held_out']}"
        print(f"| {r['algorithm']} | {facts} | {r['loss'][0]:.4f} | {r['loss'][1]:.4f} {sides} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out objectives before and after training.")
    parser.add_argument("--data", required=True, type=Path, help="folder with the three demo sets")
    parser.add_argument("--store", default="./forge", help="what is there already is not trained again")
    options = parser.parse_args()
    from train_jobs.commands import run_manifest

    with tempfile.TemporaryDirectory() as folder:
        made = run_manifest(write_manifest(options.data, Path(folder)), options.store).artifacts
    rows = [summarise(algorithm, made[f"{algorithm}-moved"].metrics) for algorithm in STAGES]
    show(rows)
    write_down("objectives", {"id": "objectives", "rows": rows}, command=COMMAND)
    if still := [r["algorithm"] for r in rows if not r["moved"]]:
        raise SystemExit(f"no better on held-out rows: {', '.join(still)}")


if __name__ == "__main__":
    main()
