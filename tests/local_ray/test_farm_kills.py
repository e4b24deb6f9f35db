"""Twenty kills at random moments of one farm with a real engine: each row once, and poison rows apart."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml

from largeforge_ray.store import open_store
from largeforge_ray.teach import read_teacher_rows
from tests.local_ray._chaos import Attempt, attempt
from tests.local_ray._watched import POISON
from tests.local_ray.test_training_faults import cluster_of
from tests.unit._tiny import text, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

PROMPTS, SAMPLES, KILLS = 160, 4, 20
VICTIMS = ("driver", "VLLM::EngineCore", "ray::WatchedActor", "ray::Asker", "raylet/raylet")
"""The last one is the node: with it everything on it ends."""
ENDS_RUN = ("driver", "raylet/raylet")


def write_farm(folder: Path, engines: int = 1, poisoned: bool = True) -> Path:
    rng = random.Random(0)
    prompts = [f"{i} {text(rng, 6)}" for i in range(PROMPTS - 3)]
    if poisoned:
        prompts += [f"{POISON} of one kind", f"{POISON} of another kind", "far too long " * 400]
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in prompts))
    tiny_model(folder, head_dim=32)
    rows = {"name": "rows", "kind": "teach", "prompts": "prompts", "samples": SAMPLES, "keep": "all"}
    rows["engines"] = engines
    manifest = {
        "name": "farm",
        "model": {"source": str(folder / "tiny"), "max_model_len": 512},
        "stages": [
            {"name": "prompts", "kind": "dataset", "source": "prompts.jsonl", "split": {"test": 0.0}},
            rows | {"teacher": {"temperature": 1.0, "max_tokens": 384}},
        ],
    }
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path


def start(folder: Path, manifest: Path) -> Attempt:
    command = [sys.executable, "-m", "tests.local_ray._watched", str(manifest), str(folder / "notes")]
    return attempt(folder, manifest, command)


def done(run: Attempt) -> int:
    return max((e["numbers"].get("done", 0) for e in run.events() if e["stage"] == "rows"), default=0)


def wait_until(run: Attempt, rows: int) -> bool:
    """Whether that many rows are done, False if the run ended before."""
    while done(run) < rows:
        if run.process.poll() is not None:
            return False
        time.sleep(0.05)
    return True


def finished(folder: Path) -> list[list[str]]:
    """What each engine's process finished."""
    return [path.read_text().split() for path in (folder / "notes").glob("*")]


def made_again(folder: Path) -> int:
    made = [key for keys in finished(folder) for key in keys]
    return len(made) - len(set(made))


def test_twenty_random_kills_lose_no_row_and_double_none(tmp_path: Path) -> None:
    manifest, rng = write_farm(tmp_path), random.Random(20)
    total = PROMPTS * SAMPLES
    print("\n| kill | rows done | victim | outcome | rows on after, s |\n|---|---|---|---|---|")
    run = start(tmp_path, manifest)
    for kill in range(1, KILLS + 1):
        aim = int((kill - 0.5 + rng.uniform(-0.4, 0.4)) * (total - 40) / KILLS)
        if not wait_until(run, aim):
            assert run.process.returncode == 0, run.log.read_text()
            break
        victim = VICTIMS[(kill - 1) % len(VICTIMS)] if kill <= len(VICTIMS) else rng.choice(VICTIMS)
        struck, at = time.monotonic(), done(run)
        os.kill(run.process.pid if victim == "driver" else run.find(victim).pid, signal.SIGKILL)
        outcome = "went on by itself"
        if victim in ENDS_RUN:
            run.process.wait(120)
            for left in run.family() if psutil.pid_exists(run.process.pid) else []:
                left.kill()
            run, outcome = start(tmp_path, manifest), "run again"
        wait_until(run, at + 1)
        print(f"| {kill} | {at} | {victim} | {outcome} | {time.monotonic() - struck:.0f} |", flush=True)
    assert run.finish(600) == 0, run.log.read_text()
    store = open_store(run.store)
    artifact = store.get("rows")
    rows = list(read_teacher_rows(store.fetch(artifact)))
    assert len(rows) == total
    assert len({r["row_key"] for r in rows}) == total
    dead = Counter(r["error"] for r in rows if r["error"])
    assert sum(dead.values()) == 3 * SAMPLES
    poisoned = [r for r in rows if r["messages"][0]["content"].startswith(POISON)]
    assert {r["error"] for r in poisoned} == {"the engine died 2 times while it had this request alone"}
    again = made_again(tmp_path)
    print(f"lost 0, doubled 0 of {total}; {again} finished rows made again over all kills")
    assert store.list("journal") == []


@pytest.mark.parametrize(("share", "poisoned"), [(0.25, False), (0.5, True), (0.75, False)])
def test_one_kill_makes_few_rows_again(share: float, poisoned: bool, tmp_path: Path) -> None:
    """Where the prompts that kill the engine are all that is left in the end, it goes on through them."""
    manifest, total = write_farm(tmp_path, poisoned=poisoned), PROMPTS * SAMPLES
    run = start(tmp_path, manifest)
    assert wait_until(run, int(share * total))
    # What is done is told right after it was journalled; most kills come at another time.
    time.sleep(random.Random(share).uniform(0.0, 2.0))
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(10)
    run = start(tmp_path, manifest)
    assert run.finish(900) == 0, run.log.read_text()
    again = made_again(tmp_path)
    print(f"driver killed at {share:.0%}: {again} of {total} rows made again, {again / total:.3f}")
    assert again <= 0.05 * total


def test_two_engines_share_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster_of(monkeypatch, 3):
        run = start(tmp_path, write_farm(tmp_path, engines=2, poisoned=False))
        assert run.finish(600) == 0, run.log.read_text()
    total, shares = (PROMPTS - 3) * SAMPLES, [len(keys) for keys in finished(tmp_path)]
    print(f"{total} rows, of two engines {shares}")
    assert len(shares) == 2
    assert sum(shares) == total
    assert min(shares) > 0.35 * total
    assert made_again(tmp_path) == 0
