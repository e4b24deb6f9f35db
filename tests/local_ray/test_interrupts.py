"""Ctrl-C and SIGTERM: one line, exit code 130, no process and no half-made artifact left; then it goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from largeforge_ray.store import open_store
from tests.local_ray._chaos import GONE_WITHIN_S, assert_gone, assert_same, attempt, prepare
from tests.local_ray.conftest import Forge
from tests.local_ray.test_kills import NAMES, done

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("stage", "moment", "send"),
    [
        ("rows", done("rows", 24), lambda pid: os.killpg(pid, signal.SIGINT)),
        ("orders", done("orders", 5), lambda pid: os.killpg(pid, signal.SIGINT)),
        ("orders", done("orders", 5), lambda pid: os.kill(pid, signal.SIGTERM)),
    ],
    ids=["ctrl-c in teach", "ctrl-c in train", "sigterm in train"],
)
def test_an_interrupted_run_leaves_nothing_and_goes_on(
    stage: str, moment, send, forge: Forge, tmp_path: Path
) -> None:
    place = NAMES.index(stage)
    manifest = prepare(forge, tmp_path, present=NAMES[:place], stages=place)
    run = attempt(tmp_path, manifest)
    run.wait_for(moment)
    family = run.family()
    send(run.process.pid)
    assert run.finish(60) == 130
    assert_gone(family, GONE_WITHIN_S)
    console = run.log.read_text()
    assert console.rstrip().endswith("interrupted; run the same command again to go on where it stopped")
    assert "Traceback" not in console
    store = open_store(run.store)
    assert {p.name for p in (run.store / "artifacts").glob("*/*")} == {
        store.get(name).key[:16] for name in NAMES[:place]
    }
    again = attempt(tmp_path, manifest)
    assert again.finish() == 0, again.log.read_text()
    assert_same(open_store(run.store), open_store(forge.store), NAMES[: place + 1])
