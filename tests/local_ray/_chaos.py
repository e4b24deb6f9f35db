"""Start a run, wait until a stage is at a point, strike a process of it, and see what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

from largeforge_ray.store import Store, open_store
from largeforge_ray.teach import read_teacher_rows
from tests.local_ray.conftest import ENVIRONMENT, ROOT, Forge

PATH = os.environ.get("PYTHONPATH", "")
FOUND_WITHIN_S = 180
GONE_WITHIN_S = 30
ORPHANS_GONE_WITHIN_S = 120
"""Two of Ray's agents try to report a killed driver's end for a minute before they end themselves."""


@dataclass
class Attempt:
    """One run of ``largeforge run``, in a process group of its own."""

    process: subprocess.Popen[str]
    store: Path
    log: Path

    def events(self) -> Iterator[dict]:
        runs = sorted((self.store / "runs").glob("*/events.jsonl"), key=lambda p: p.stat().st_mtime)
        for line in runs[-1].read_text().splitlines() if runs else []:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # the line being written
                return

    def wait_for(self, reached: Callable[[dict], bool]) -> None:
        deadline = time.monotonic() + FOUND_WITHIN_S
        while not any(reached(event) for event in self.events()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def family(self) -> list[psutil.Process]:
        driver = psutil.Process(self.process.pid)
        return [driver, *driver.children(recursive=True)]

    def find(self, title: str) -> psutil.Process:
        """A process of this run by its title; the engine and the workers name themselves."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in self.family():
                try:
                    if title in " ".join(process.cmdline()):
                        return process
                except psutil.Error:
                    continue  # it ended while we looked
            time.sleep(0.02)
        raise AssertionError(f"no process '{title}' in this run")

    def finish(self, limit_s: float = 600) -> int:
        return self.process.wait(limit_s)


def attempt(
    folder: Path, manifest: Path, command: list[str] | None = None, *, cluster: str | None = None
) -> Attempt:
    """``largeforge run`` of the manifest, or another command that does as much, on its own cluster or the one
    at that address."""
    log = folder / "console.txt"
    largeforge = str(Path(sys.executable).with_name("largeforge"))
    with log.open("a") as out:
        process = subprocess.Popen(
            command or [largeforge, "run", str(manifest)],
            cwd=folder,
            # What is run may be in the tests.
            env=ENVIRONMENT
            | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), PATH]))}
            | ({"RAY_ADDRESS": cluster} if cluster else {}),
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    return Attempt(process, folder / "forge", log)


def prepare(forge: Forge, folder: Path, *, present: list[str], stages: int) -> Path:
    """A store that holds the artifacts ``present`` and a manifest of the first ``stages`` stages."""
    source, target = open_store(forge.store), folder / "forge"
    for name in present:
        artifact = source.get(name)
        inside = Path("artifacts") / artifact.kind / artifact.key[:16]
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", forge.store / inside, target / inside], check=True)
    manifest = yaml.safe_load(forge.manifest.read_text())
    manifest["stages"] = manifest["stages"][:stages]
    (folder / "orders.jsonl").write_bytes((forge.folder / "orders.jsonl").read_bytes())
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path


def strike(run: Attempt, victim: str) -> list[psutil.Process]:
    """Kill -9; returns the run's processes, none of which may outlive it for long."""
    family = run.family()
    os.kill(run.process.pid if victim == "driver" else run.find(victim).pid, signal.SIGKILL)
    if victim == "driver":
        run.process.wait(10)
    return family


def assert_gone(family: list[psutil.Process], within_s: float) -> None:
    left = psutil.wait_procs(family, timeout=within_s)[1]
    assert [" ".join(p.cmdline())[:80] for p in left if p.is_running()] == []


def assert_same(store: Store, reference: Store, names: list[str]) -> None:
    """The same keys, whole; every row once; nothing half-made beside them."""
    import pyarrow.parquet as pq

    def keys(of: Store, name: str, file: str, *columns: str) -> list[tuple]:
        table = pq.read_table(of.fetch(of.get(name)) / file, columns=list(columns))
        return sorted(zip(*(table[c].to_pylist() for c in columns), strict=True))

    for name in names:
        assert store.get(name).key == reference.get(name).key
        store.fetch(store.get(name))
    if "rows" in names:
        mine, theirs = (
            sorted(r["row_key"] for r in read_teacher_rows(of.fetch(of.get("rows"))))
            for of in (store, reference)
        )
        assert mine == theirs
    if "outcomes" in names:
        columns = ("outcomes.parquet", "item_hash", "expert", "sample")
        assert keys(store, "outcomes", *columns) == keys(reference, "outcomes", *columns)
    root = store.local_root
    assert root is not None
    # Tokens are made by a stage for itself and its like; they are no stage's artifact.
    folders = {p.name for p in (root / "artifacts").glob("*/*") if p.parent.name != "tokens"}
    assert folders == {store.get(name).key[:16] for name in names}
    assert store.list("journal") == []


@pytest.fixture(scope="session")
def table() -> Iterator[list[str]]:
    """Rows of the table that the session ends with; LARGEFORGE_KILL_TABLE names a file for it."""
    rows = ["| stage | victim | outcome | seconds to finish |", "|---|---|---|---|"]
    yield rows
    text = "\n".join(rows)
    print(f"\n{text}")
    if path := os.environ.get("LARGEFORGE_KILL_TABLE"):
        Path(path).write_text(text + "\n")
