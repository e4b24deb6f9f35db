"""Publishing, finding and fetching artifacts, in a local folder and in an object store (in memory)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.errors import CorruptArtifactError, StoreError
from largeforge_ray.store import Artifact, Store, artifact_key, format_lineage, lineage_tree, open_store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "cache"))
    url = str(tmp_path / "forge") if request.param == "local" else f"memory://{uuid.uuid4().hex}/forge"
    store = open_store(url)
    yield store
    # Whatever a test did, nothing is left half way.
    assert store.list(".staging") == []
    assert list((tmp_path / "cache").glob(".staging/*")) == []


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def folder_with(parent: Path, **files: str) -> Path:
    folder = parent / uuid.uuid4().hex
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder.mkdir(exist_ok=True)
    return folder


def publish(
    store: Store, folder: Path, name: str = "rows", kind: str = "dataset", parents: Any = (), **config: Any
) -> Artifact:
    key = artifact_key(kind, config, parents)
    return store.publish(kind, key, name, parents, config, folder, metrics={"rows": 2}, cost={})


def test_publish_find_fetch(store: Store, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, train="one", deep__er__test="two")
    made = publish(store, folder, seed=1)
    assert store.find("dataset", made.key) == made
    assert [(file.path, file.bytes) for file in made.files] == [("deep/er/test", 3), ("train", 3)]
    assert made.metrics == {"rows": 2}
    assert set(made.producer) == {"version", "packages", "machine"}
    assert made.created.endswith("+00:00")
    there = store.fetch(made)
    assert (there / "deep/er/test").read_text() == "two"
    assert (folder / "train").read_text() == "one"  # the caller's folder is left alone
    assert list(store.artifacts()) == [made]
    assert store.exists(f"artifacts/dataset/{made.key[:16]}/artifact.json")


def test_what_is_absent_is_none(store: Store) -> None:
    assert store.find("dataset", "0" * 64) is None
    assert list(store.artifacts()) == []
    with pytest.raises(StoreError, match="64 hex"):
        store.find("dataset", "abc")
    with pytest.raises(StoreError, match="lower-case word"):
        store.find("../dataset", "0" * 64)


def test_staging_is_used_up_by_publish_and_removed_otherwise(store: Store, tmp_path: Path) -> None:
    key = artifact_key("dataset", {}, [])
    with store.staging("dataset", key) as folder:
        (folder / "a").write_text("x")
        made = store.publish("dataset", key, "rows", [], {}, folder, {}, {})
    assert not folder.exists()
    assert (store.fetch(made) / "a").read_text() == "x"
    with pytest.raises(ZeroDivisionError), store.staging("dataset", key) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert not folder.exists()


def test_the_first_publisher_wins(store: Store, tmp_path: Path) -> None:
    first = publish(store, folder_with(tmp_path, a="first"), name="first")
    with store.staging("dataset", first.key) as folder:
        (folder / "a").write_text("second")
        assert store.publish("dataset", first.key, "second", [], {}, folder, {}, {}) == first
    assert (store.fetch(first) / "a").read_text() == "first"


def test_concurrent_publishers_agree(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, results = 6, []
    key = artifact_key("dataset", {}, [])
    barrier = threading.Barrier(threads)
    place = store._files.place

    def together(folder: Path, artifact: Artifact) -> bool:
        barrier.wait(10)
        return place(folder, artifact)

    monkeypatch.setattr(store._files, "place", together)

    def work(number: int) -> None:
        with store.staging("dataset", key) as folder:
            (folder / "a").write_text(str(number) * 1000)
            results.append(store.publish("dataset", key, f"by-{number}", [], {}, folder, {}, {}))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == threads
    assert all(result == results[0] for result in results)
    text = (store.fetch(results[0]) / "a").read_text()
    assert text == results[0].name.removeprefix("by-") * 1000
    folders = [path for path in store.list(results[0].location) if "/data-" in path]
    assert len(folders) == (0 if store.is_local else 1)


def test_get_by_key_prefix_and_by_newest_name(store: Store, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="x")
    old = publish(store, folder, seed=1)
    new = publish(store, folder, seed=2)
    assert store.get(old.key[:8]) == old
    assert store.get(old.key) == old
    assert store.get("rows") == new
    with pytest.raises(StoreError, match=f"choose one of: .*{new.key[:16]} .rows."):
        store.get("nothing")
    with pytest.raises(StoreError, match="no artifact"):
        store.get(old.key[:20] + ("0" if old.key[20] != "0" else "1"))


def test_an_ambiguous_prefix_lists_the_candidates(local: Store, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="x")
    for tail in "01":
        local.publish("dataset", "abcd" + tail * 60, f"rows{tail}", [], {}, folder)
    with pytest.raises(StoreError, match=r"several.*rows0.*rows1"):
        local.get("abcd")


def test_damage_is_found_and_named(store: Store, tmp_path: Path) -> None:
    made = publish(store, folder_with(tmp_path, a="12345", b="x"))
    rel = f"{made.data}/a"
    fresh = pickle.loads(pickle.dumps(store))

    store.write_bytes(rel, b"12346")
    assert store.find("dataset", made.key) == made  # the size is right; fetch compares the bytes
    with pytest.raises(CorruptArtifactError, match=r"a: expected sha256 .* found sha256 .*; delete"):
        fresh.fetch(made)
    store.write_bytes(rel, b"123")
    with pytest.raises(CorruptArtifactError, match="a: expected 5 bytes, found 3 bytes; delete"):
        store.find("dataset", made.key)
    store.remove(rel)
    with pytest.raises(CorruptArtifactError, match="a: expected 5 bytes, found no file; delete"):
        store.find("dataset", made.key)
    with pytest.raises(CorruptArtifactError, match="delete"):
        fresh.fetch(made)
    store.write_bytes(f"{made.location}/artifact.json", b'{"kind": "da')
    with pytest.raises(CorruptArtifactError, match=r"artifact\.json: expected .*delete"):
        store.find("dataset", made.key)
    store.remove(made.location)  # the fix that the message names
    assert store.find("dataset", made.key) is None
    assert publish(store, folder_with(tmp_path, a="12345", b="x")).key == made.key


def test_a_record_under_another_key_is_corrupt(store: Store, tmp_path: Path) -> None:
    made = publish(store, folder_with(tmp_path, a="1"))
    other = made.key[:16] + "0" * 48
    with pytest.raises(CorruptArtifactError, match=made.key):
        store.find("dataset", other)


def test_without_its_record_a_folder_is_no_artifact(store: Store, tmp_path: Path) -> None:
    made = publish(store, folder_with(tmp_path, a="old"))
    store.remove(f"{made.location}/artifact.json")
    assert store.find("dataset", made.key) is None
    assert list(store.artifacts()) == []
    again = publish(store, folder_with(tmp_path, a="new"))
    assert (store.fetch(again) / "a").read_text() == "new"


def test_fetch_verifies_once_in_a_process(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(local, folder_with(tmp_path, a="1"))
    local.fetch(made)
    monkeypatch.setattr(local._files, "fetch", None)
    assert local.fetch(made) == local.local_root / made.location
    assert pickle.loads(pickle.dumps(made)) == made


def test_links_foreign_names_and_links_to_the_store(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("kept")
    key = artifact_key("dataset", {}, [])
    with store.staging("dataset", key) as folder:
        (folder / "linked").symlink_to(outside)
        (folder / "späce [1]*?").write_text("odd")
        (folder / "dir").symlink_to(folder_with(tmp_path, inner="deep"))
        made = store.publish("dataset", key, "rows", [], {}, folder, {}, {})
    outside.unlink()
    there = store.fetch(made)
    assert (there / "linked").read_text() == "kept"
    assert not (there / "linked").is_symlink()
    assert (there / "späce [1]*?").read_text() == "odd"
    assert (there / "dir/inner").read_text() == "deep"
    if store.local_root is not None:
        (tmp_path / "alias").symlink_to(store.local_root)
        assert open_store(tmp_path / "alias").get("rows") == made


def test_what_cannot_be_published_is_refused(store: Store, tmp_path: Path) -> None:
    loop = folder_with(tmp_path, a="x")
    (loop / "up").symlink_to(loop)
    dangling = folder_with(tmp_path)
    (dangling / "b").symlink_to(tmp_path / "nowhere")
    pipe = folder_with(tmp_path)
    os.mkfifo(pipe / "p")
    own = folder_with(tmp_path, **{"artifact.json": "{}"})
    for folder, rule in [
        (loop, "folder above"), (dangling, "dangling"), (pipe, "special file"), (own, "own record"),
        (tmp_path / "none", "not a folder"),
    ]:  # fmt: skip
        with pytest.raises(StoreError, match=rule):
            publish(store, folder)
    with pytest.raises(StoreError, match="64 hex"):
        publish(store, folder_with(tmp_path, a="x"), parents=["p"])
    assert list(store.artifacts()) == []


def test_small_files(store: Store) -> None:
    store.write_bytes("runs/a/plan.json", b"1")
    store.write_bytes("runs/a/plan.json", b"22")
    store.write_bytes("runs/b[1]/x*", b"3")
    assert store.read_bytes("runs/a/plan.json") == b"22"
    assert store.list("runs") == ["runs/a", "runs/b[1]"]
    assert store.list("runs/a") == ["runs/a/plan.json"]
    assert store.list("registry") == []
    assert store.exists("runs/a")
    assert not store.exists("runs/c")
    store.remove("runs/b[1]/x*")
    assert not store.exists("runs/b[1]/x*")
    store.remove("runs/a")
    store.remove("runs/a")
    assert not store.exists("runs/a/plan.json")
    with pytest.raises(StoreError, match="no file"):
        store.read_bytes("runs/a/plan.json")
    for path in ("../x", "/etc/x", "runs//x", "", "runs/../../x"):
        with pytest.raises(StoreError, match="relative"):
            store.write_bytes(path, b"")


def test_a_store_pickles_and_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("./forge")
    made = publish(store, folder_with(tmp_path, a="x"))
    data = pickle.dumps(store)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert (again.url, again.is_local, again.local_root) == (
        str(tmp_path / "forge"),
        True,
        tmp_path / "forge",
    )
    assert again.find("dataset", made.key) == made
    assert open_store(f"file://{tmp_path}/forge").get("rows") == made


def test_addresses_that_cannot_be_opened_say_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/\.staging: a file lies where a folder must be"):
        open_store(tmp_path / "file")
    with pytest.raises(StoreError, match=r"nosuch://x.*s3://bucket"):
        open_store("nosuch://x/y")


def test_lineage_reaches_the_rows(store: Store, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="x")
    prompts = publish(store, folder, "prompts", source="prompts.jsonl")
    rows = publish(store, folder, "rows", parents=[prompts.key])
    tuned = publish(store, folder, "tuned", "adapter", parents=[rows.key, "f" * 64])
    outcomes = publish(store, folder, "outcomes", "outcomes", parents=[tuned.key, rows.key])
    tree = lineage_tree(store, outcomes)
    assert [node.artifact for node in tree.parents] == [tuned, rows]
    assert tree.parents[0].parents[0] is tree.parents[1]
    text = format_lineage(tree)
    lines = text.splitlines()
    assert lines[0].startswith(f"outcomes outcomes {outcomes.key[:16]}  2")
    assert lines[1].startswith(f"├─ adapter tuned {tuned.key[:16]}")
    assert lines[2].startswith(f"│  ├─ dataset rows {rows.key[:16]}")
    assert lines[3].startswith("│  │  └─ dataset prompts")
    assert "source=prompts.jsonl  rows=2" in lines[3]
    assert lines[4] == f"│  └─ removed {'f' * 16}"
    assert lines[5].startswith("└─ dataset rows")
    assert lines[5].endswith("(shown above)")
    assert len(lines) == 6


def test_lineage_of_a_forged_cycle_ends(local: Store, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a="x")
    one, two = "1" * 64, "2" * 64
    local.publish("dataset", one, "one", [two], {}, folder)
    made = local.publish("dataset", two, "two", [one], {}, folder)
    with pytest.raises(CorruptArtifactError, match="own ancestor"):
        lineage_tree(local, made)


def test_import_is_light_and_opening_is_quick(local: Store, tmp_path: Path) -> None:
    made = publish(local, folder_with(tmp_path, a="x"))
    code = f"""
import sys, time
import largeforge_ray.store as s
took = []
for _ in range(5):
    start = time.perf_counter()
    s.open_store({local.url!r}).find("dataset", {made.key!r})
    took.append(time.perf_counter() - start)
heavy = {{"torch", "ray", "pyarrow", "s3fs", "fsspec", "vllm", "transformers", "numpy"}} & set(sys.modules)
assert not heavy, heavy
print(min(took))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 0.05
    start = time.perf_counter()
    open_store(local.url).find("dataset", made.key)
    assert time.perf_counter() - start < 1
