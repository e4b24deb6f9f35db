"""The quickstart's gain on several seeds: is it real, or the luck of one draw?

python -m benchmarks.quickstart_seeds --store ./forge

A seed sets the teacher's sampling, the order of training and the bootstrap; model and split are shared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import yaml

SHIPPED = Path(__file__).parents[1] / "train_jobs" / "manifests"
SEEDED = ("teach", "train", "evaluate")


def manifest_for(seed: int, folder: Path) -> Path:
    manifest = yaml.safe_load((SHIPPED / "quickstart.yaml").read_text())
    for stage in manifest["stages"]:
        if stage["kind"] in SEEDED:
            stage["seed"] = seed
    path = folder / f"seed-{seed}.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path


def main() -> None:
    from train_jobs.commands import run_manifest

    parser = argparse.ArgumentParser(description="The quickstart's gain on several seeds.")
    parser.add_argument("--store", default="./forge")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", default="", help="also write the numbers here")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "orders.jsonl").write_bytes((SHIPPED / "orders.jsonl").read_bytes())
        for seed in range(options.seeds):
            result = run_manifest(manifest_for(seed, folder), options.store)
            outcomes, kept = result.artifacts["outcomes"].metrics, result.artifacts["rows"].metrics
            gain = outcomes["gains"]["orders"]
            rows.append({"seed": seed, "kept": kept["kept"], "rows": kept["rows"], **gain} | scores(outcomes))
    print("| seed | kept of answers | rows | base | adapter | gain, 95% interval |")
    print("|---|---|---|---|---|---|")
    for r in rows:
        interval = f"{r['gain']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"
        print(
            f"| {r['seed']} | {r['kept']} | {r['rows']} | {r['base']:.3f} | {r['orders']:.3f} | {interval} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2))


def scores(outcomes: dict) -> dict[str, float]:
    return {name: score["accuracy"] for name, score in outcomes["candidates"].items()}


if __name__ == "__main__":
    main()
