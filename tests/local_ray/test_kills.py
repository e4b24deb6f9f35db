"""``kill -9`` in every stage, then the same command again: the same keys, nothing lost, nothing doubled."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from largeforge_ray.store import open_store
from tests.local_ray._chaos import (
    ORPHANS_GONE_WITHIN_S,
    assert_gone,
    assert_same,
    attempt,
    prepare,
    strike,
    table,
)
from tests.local_ray.conftest import Forge

__all__ = ["table"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAMES = ["base", "prompts", "rows", "orders", "outcomes", "live"]
ENGINE, ASKER, TRAINER = "VLLM::EngineCore", "ray::Asker", "ray::RayTrainWorker"


def started(stage: str):
    return lambda e: e["stage"] == stage and e["kind"] == "started"


def done(stage: str, count: int):
    """Progress of at least ``count`` rows or steps."""
    return lambda e: (
        e["stage"] == stage
        and e["kind"] == "progress"
        and e["numbers"].get("done", e["numbers"].get("step", 0)) >= count
    )


def said(stage: str, word: str):
    return lambda e: e["stage"] == stage and word in e["message"]


CASES = [
    ("base", "driver", started("base")),
    ("prompts", "driver", started("prompts")),
    ("rows", "driver", done("rows", 24)),
    ("rows", ASKER, done("rows", 24)),
    ("rows", ENGINE, done("rows", 24)),
    ("orders", "driver", done("orders", 8)),
    ("orders", TRAINER, done("orders", 8)),
    ("outcomes", "driver", done("outcomes", 8)),
    ("outcomes", ASKER, done("outcomes", 8)),
    ("outcomes", ENGINE, done("outcomes", 8)),
    ("live", "driver", said("live", "gate")),
    ("live", ENGINE, said("live", "gate")),
]


@pytest.mark.parametrize(("stage", "victim", "moment"), CASES, ids=[f"{s}-{v}" for s, v, _ in CASES])
def test_a_killed_run_ends_where_an_unbroken_one_does(
    stage: str, victim: str, moment, forge: Forge, table: list[str], tmp_path: Path
) -> None:
    place = NAMES.index(stage)
    manifest = prepare(forge, tmp_path, present=NAMES[:place], stages=max(place, 1))
    run = attempt(tmp_path, manifest)
    run.wait_for(moment)
    family = strike(run, victim)
    began = time.monotonic()
    if victim == "driver":
        run = attempt(tmp_path, manifest)
        outcome = "run again"
    else:
        outcome = "went on by itself"
    code = run.finish()
    console = run.log.read_text()
    assert code == 0, console
    assert "Traceback" not in console
    assert_gone(family, ORPHANS_GONE_WITHIN_S)
    names = NAMES[: max(place, 1) + 1]
    assert_same(open_store(run.store), open_store(forge.store), names)
    if found := re.findall(r"resumed at step \d+|\d+ rows were already in the journal", console):
        outcome += f", {found[-1]}"
    table.append(f"| {stage} | {victim} | {outcome}; same keys | {time.monotonic() - began:.0f} |")
