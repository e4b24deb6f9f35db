"""What served requests take alone, and beside a teacher farm that has whatever they leave.

python -m benchmarks.shared_box --store ./forge [--pairs 5]

Router, engine and farm on one Ray cluster of this machine. In turn the farm's engine is stopped (SIGSTOP) and
goes on, while one client asks one request after the other. What the farm makes meanwhile is in its journal.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks._http import free_port, median_ms, percentile_ms, stream, wait_until_up
from benchmarks._pairs import record, refuse_busy
from benchmarks.serve_ratios import prompts

COMMAND = "python -m benchmarks.shared_box --store ./forge"
REQUESTS, TOKENS = 12, 32
ANSWERS = 64
"""Of the farm's teacher to each prompt: more than it will get to."""
RAY = Path(sys.executable).with_name("ray")
SHIPPED = Path(__file__).parents[1] / "train_jobs" / "manifests"


def engines() -> set[int]:
    """The processes of all vLLM engines on this machine."""
    found = subprocess.run(["pgrep", "-f", "^VLLM::"], capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split()}


def manifest(folder: Path) -> Path:
    given = yaml.safe_load((SHIPPED / "quickstart.yaml").read_text(encoding="utf-8"))
    given["stages"] = given["stages"][:2]
    given["stages"][0]["source"] = str(SHIPPED / "orders.jsonl")
    given["stages"][1]["samples"] = ANSWERS
    path = folder / "farm.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    return path


def journalled(folder: Path) -> int:
    from largeforge_ray.store import RowJournal, open_store

    store = open_store(folder / "farm")
    return sum(len(RowJournal(store, Path(each).name).done()) for each in store.list("journal"))


def started(words: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(words, env=env, **quiet)


def measure(url: str, farm: set[int], folder: Path, pairs: int) -> None:
    def turn(stopped: bool) -> Any:
        for pid in farm:
            os.kill(pid, signal.SIGSTOP if stopped else signal.SIGCONT)
        time.sleep(2)
        return stream(url, prompts(REQUESTS), 1, model="base", tokens=TOKENS)

    turn(False), turn(True)
    made, rows = [], []
    for _ in range(pairs):
        alone, before = turn(True), journalled(folder)
        began = time.monotonic()
        beside = turn(False)
        rows.append((journalled(folder) - before) / (time.monotonic() - began))
        made.append((beside, alone))
    before, began = journalled(folder), time.monotonic()
    time.sleep(20)
    undisturbed = (journalled(folder) - before) / (time.monotonic() - began)
    for name, what, of in (
        ("Shared-whole", "whole answers", lambda s: median_ms(s.whole_s)),
        ("Shared-first", "first tokens", lambda s: median_ms(s.first_s)),
        ("Shared-between", "90th percentile between tokens", lambda s: percentile_ms(s.between_s, 90)),
    ):
        record(
            name,
            f"milliseconds of {what} beside a farm / alone, one client",
            [[of(beside), of(alone)] for beside, alone in made],
            equal=all(not s.failed for pair in made for s in pair),
            goal="<= 1.25",
            command=COMMAND,
            farm_rows_per_s=[round(one, 2) for one in rows],
            farm_rows_per_s_undisturbed=round(undisturbed, 2),
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.shared_box", description=__doc__)
    parser.add_argument("--store", default="./forge", help="a store with a router artifact, from a run")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    refuse_busy()
    port, gcs = free_port(), free_port()
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    usual = ["--head", f"--port={gcs}", "--num-cpus=2", "--disable-usage-stats", "--block"]
    with tempfile.TemporaryDirectory() as name:
        folder, running = Path(name), [started([str(RAY), "start", *usual], env)]
        env |= {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
        try:
            time.sleep(10)
            serve = ["-m", "serve_apps.run", "--store", options.store, "--port", str(port)]
            running.append(started([sys.executable, *serve], env))
            url = f"http://127.0.0.1:{port}"
            print(f"served after {wait_until_up(f'{url}/ready', running[-1]):.0f} s")
            serving = engines()
            largeforge = str(Path(sys.executable).with_name("largeforge"))
            words = [largeforge, "run", str(manifest(folder)), "--store", str(folder / "farm")]
            running.append(started(words, env))
            while journalled(folder) < 50:
                assert running[-1].poll() is None, "the farm ended"
                time.sleep(1)
            farm = engines() - serving
            print(json.dumps({"serving": sorted(serving), "farm": sorted(farm)}), flush=True)
            measure(url, farm, folder, options.pairs)
        finally:
            for pid in engines():
                os.kill(pid, signal.SIGCONT)
            for process in reversed(running):
                process.send_signal(signal.SIGTERM)
                process.wait(60)


if __name__ == "__main__":
    main()
