"""Two ways of doing one thing, in turn, on a machine that is not busy; ratios go to ``results/``."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BUSY_LOAD = 1.5
"""One-minute load beside which no ratio is worth writing down."""


def refuse_busy() -> None:
    """End with a reason instead of measuring a machine that does something else."""
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        raise SystemExit(
            f"skipped: the machine is busy (load {load:.1f} > {BUSY_LOAD}); nothing was measured"
        )


def in_turn(a: Callable[[], float], b: Callable[[], float], pairs: int) -> list[list[float]]:
    """``[[a, b], ...]`` after one warm-up of each; each call returns what is compared, seconds or a rate."""
    a(), b()
    return [[a(), b()] for _ in range(pairs)]


def seconds(work: Callable[[], Any]) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return timed


def record(
    name: str, what: str, pairs: list[list[float]], *, equal: bool, goal: str, command: str, **more: Any
) -> dict[str, Any]:
    """Print the ratio a / b with its spread, and write it down."""
    ratios = [a / b for a, b in pairs]
    made = {
        "id": name,
        "what": what,
        "ratio": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
        "pairs": [[round(x, 4) for x in pair] for pair in pairs],
        "equal": equal,
        "goal": goal,
    }
    print(f"{name}  {what}: {made['ratio']} ({made['min']} to {made['max']}), goal {goal}, equal: {equal}")
    return write_down(name, made, command=command, **more)


def write_down(name: str, made: dict[str, Any], *, command: str, **more: Any) -> dict[str, Any]:
    """Keep what was measured, with how, where, on which commit and when."""
    made |= {
        "command": command,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "date": date.today().isoformat(),
    } | more
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return made
