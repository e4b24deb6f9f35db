"""What a store must survive: kills at any moment, full disks, forbidden and read-only places."""

from __future__ import annotations

import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from largeforge_ray.errors import StoreError
from largeforge_ray.store import Store, artifact_key, open_store
from largeforge_ray.store.files import is_abandoned, owned_name

PUBLISH_FOREVER = """
import sys
from largeforge_ray.store import artifact_key, open_store
store = open_store(sys.argv[1])
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    key = artifact_key("dataset", {"n": number}, [])
    with store.staging("dataset", key) as folder:
        for name in "abc":
            (folder / name).write_bytes(bytes([number % 251]) * 300_000)
        store.publish("dataset", key, f"rows-{number}", [], {"n": number}, folder)
    store.write_bytes("runs/r/plan.json", b"%d" % number * 1000)
    number += 1
"""

# Every step of a publish and of a small write goes through one of these calls; the process kills itself
# just before the n-th of them.
DIE_AT_STEP = """
import os, signal, sys
from largeforge_ray.store import artifact_key, open_store
store = open_store(sys.argv[1])
left = int(sys.argv[2])
def hook(event, args):
    global left
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
key = artifact_key("dataset", {}, [])
with store.staging("dataset", key) as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "a").write_text("x" * 5000)
    (folder / "b").write_text("y")
    store._files.prepare(folder)
    sys.addaudithook(hook)
    store.publish("dataset", key, "rows", [], {}, folder)
store.write_bytes("runs/r/plan.json", b"new" * 1000)
"""


def script(code: str, *args: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, args)]


def test_kill_9_at_random_moments_leaves_whole_artifacts_only(tmp_path: Path) -> None:
    root = tmp_path / "forge"
    rng = random.Random(0)
    first = 0
    for _ in range(6):
        process = subprocess.Popen(script(PUBLISH_FOREVER, root, first), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.wait()
        process.stdout.close()
        store = open_store(root)
        assert store.list(".staging") == []
        found = {artifact.name for artifact in store.artifacts()}
        first = len(found)
        assert found == {f"rows-{number}" for number in range(first)}
        for artifact in store.artifacts():
            store.fetch(artifact)
        if store.exists("runs/r/plan.json"):
            assert len(store.read_bytes("runs/r/plan.json")) % 1000 == 0
    assert first > 0


def test_kill_9_before_every_single_step(tmp_path: Path) -> None:
    key = artifact_key("dataset", {}, [])
    outcomes = []
    step = 0
    while True:
        root = tmp_path / str(step)
        open_store(root).write_bytes("runs/r/plan.json", b"old")
        ended = subprocess.run(script(DIE_AT_STEP, root, step), check=False)
        store = open_store(root)
        assert store.list(".staging") == []
        found = store.find("dataset", key)
        outcomes.append(found is not None)
        assert store.read_bytes("runs/r/plan.json") in (b"old", b"new" * 1000)
        if found is not None:
            assert (store.fetch(found) / "deep/a").read_text() == "x" * 5000
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
        with store.staging("dataset", key) as folder:  # running again always succeeds
            (folder / "a").write_text("again")
            assert store.publish("dataset", key, "rows", [], {}, folder).key == key
        step += 1
    assert step > 10
    assert outcomes == sorted(outcomes)  # absent up to one step, whole from there on
    assert outcomes[0] is False


def test_only_the_dead_of_this_host_are_swept(tmp_path: Path) -> None:
    open_store(tmp_path / "forge")
    gone = subprocess.run(
        script("from largeforge_ray.store.files import owned_name; print(owned_name())"),
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    elsewhere = gone + "-other"
    staging = tmp_path / "forge/.staging"
    mine = owned_name()
    for name in (gone, elsewhere, mine, "not-ours"):
        (staging / name).mkdir()
    open_store(tmp_path / "forge")
    assert sorted(path.name for path in staging.iterdir()) == sorted([elsewhere, mine, "not-ours"])
    assert [is_abandoned(name) for name in (gone, elsewhere, mine, "", "a.b.c")] == [True, *[False] * 4]


def test_dead_uploads_are_swept_unless_their_record_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "cache"))
    url = f"memory://{tmp_path.name}/forge"
    store = open_store(url)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_text("x")
    made = store.publish("dataset", "a" * 64, "rows", [], {}, tmp_path / "src")
    pid = subprocess.run(script("import os; print(os.getpid())"), capture_output=True, text=True, check=True)
    dead = owned_name().replace(f".{os.getpid()}.", f".{pid.stdout.strip()}.")
    store.write_bytes(f"artifacts/dataset/{'a' * 16}/data-{dead}/a", b"half")
    store.write_bytes(f".staging/{dead}", f"artifacts/dataset/{'a' * 16}/data-{dead}".encode())
    store.write_bytes(f".staging/1{dead}", made.data.encode())  # killed right after its record was written
    open_store(url)
    assert store.list(".staging") == []
    assert store.list(made.location) == [f"{made.location}/artifact.json", made.data]
    assert (store.fetch(made) / "a").read_text() == "x"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = open_store(small_disk / "forge")
    big = tmp_path / "big"
    big.mkdir()
    (big / "weights").write_bytes(bytes(2 << 20))
    key = artifact_key("model", {}, [])
    full = r"cannot .*disk/forge.*: the disk, quota or file size limit is reached .*; free space"
    with pytest.raises(StoreError, match=full):
        store.publish("model", key, "m", [], {}, big)
    with pytest.raises(StoreError, match=full), store.staging("model", key) as folder:
        (folder / "weights").write_bytes(bytes(2 << 20))
    with pytest.raises(StoreError, match=full):
        store.write_bytes("runs/r/plan.json", bytes(2 << 20))
    assert store.list(".staging") == []
    assert store.find("model", key) is None
    (big / "weights").write_bytes(b"small")
    assert store.publish("model", key, "m", [], {}, big).key == key


def test_a_read_only_disk_is_refused_at_once(small_disk: Path) -> None:
    open_store(small_disk / "forge")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match=r"disk/forge.*read-only.*choose another store"):
        open_store(small_disk / "forge")


def test_a_file_size_limit_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "forge")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a").write_bytes(bytes(1 << 20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(StoreError, match="file size limit is reached"):
            store.publish("dataset", "a" * 64, "rows", [], {}, tmp_path / "src")
        with pytest.raises(StoreError, match="file size limit is reached"):
            store.write_bytes("journal/a/b", bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.list(".staging") == []
    assert not store.exists("journal/a/b")


def test_a_forbidden_folder_is_refused_with_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    code = f"""
import os
from largeforge_ray.store import open_store
os.chmod({str(folder)!r}, 0o500)
if os.getuid() == 0:
    for above in {[str(path) for path in folder.parents]!r}[:3]:
        os.chmod(above, 0o755)
    os.setuid(65534)
open_store({str(folder / "forge")!r})
"""
    ended = subprocess.run(script(code), capture_output=True, text=True, check=False)
    assert f"StoreError: cannot create {folder}/forge/.staging: this user may not do that" in ended.stderr
    assert "grant the permission" in ended.stderr


def test_temporary_files_that_stay_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store: Store = open_store(tmp_path / "forge")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "no", str(path))

    with store.staging("dataset", "a" * 64) as folder, caplog.at_level(logging.WARNING):
        monkeypatch.setattr("shutil.rmtree", refuse)
    assert f"cannot remove temporary {folder}" in caplog.text
