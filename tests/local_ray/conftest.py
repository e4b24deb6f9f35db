"""One small run of the whole loop, made once and read by every test of this ring that needs it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from tests.local_ray._server import Server

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "train_jobs" / "manifests"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Forge:
    """A store that holds a finished run, and the manifest it came from."""

    folder: Path
    manifest: Path
    run: Done

    @property
    def store(self) -> Path:
        return self.folder / "forge"

    def command(self, *words: str, timeout: float = 240) -> Done:
        return largeforge(*words, cwd=self.folder, timeout=timeout)


def largeforge(*words: str, cwd: Path, timeout: float) -> Done:
    """The command as a user types it, in a process of its own."""
    started = time.monotonic()
    done = subprocess.run(
        [Path(sys.executable).with_name("largeforge"), *words],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def small_manifest(folder: Path, *, prompts: int) -> Path:
    """The shipped manifest on its first ``prompts`` rows, one no engine can take, with twice the epochs."""
    lines = (SHIPPED / "orders.jsonl").read_text().splitlines()[:prompts]
    (folder / "orders.jsonl").write_text("\n".join([*lines, too_long_row()]) + "\n")
    manifest = yaml.safe_load((SHIPPED / "quickstart.yaml").read_text())
    next(s for s in manifest["stages"] if s["kind"] == "train").update(epochs=2, checkpoint_every=4)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path


def too_long_row() -> str:
    """A row of the training part whose prompt exceeds the context."""
    from largeforge_ray.data import is_test, row_hash

    for filler in ("pillow ", "basket ", "lantern ", "ladder ", "blanket "):
        prompt = filler * 1500
        answer = {"name": "Nobody"}
        if not is_test(row_hash([{"role": "user", "content": prompt}], answer), 0.25):
            return json.dumps({"prompt": prompt, "answer": answer, "check": "json"})
    raise AssertionError("every filler's row is held out")


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    folder = tmp_path_factory.mktemp("loop")
    manifest = small_manifest(folder, prompts=96)
    run = largeforge("run", str(manifest), cwd=folder, timeout=540)
    assert run.code == 0, run.out + run.err
    return Forge(folder, manifest, run)


@pytest.fixture(scope="session")
def server(forge: Forge) -> Iterator[Server]:
    """The run's router, served; the last test that uses it ends it."""
    from tests.local_ray._server import start_server, stop_server

    served = start_server(forge.store, forge.folder)
    yield served
    stop_server(served)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a headless chromium's DevTools."""
    from tests.local_ray._browser import started_browser

    with started_browser(tmp_path_factory.mktemp("profile")) as address:
        yield address


def metrics(forge: Forge, name: str) -> dict:
    """An artifact's metrics, by stage name."""
    from largeforge_ray.store import open_store

    return json.loads(json.dumps(dict(open_store(forge.store).get(name).metrics)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
