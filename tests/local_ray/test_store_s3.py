"""The store on S3, spoken over HTTP to a local server."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from largeforge_ray.errors import CorruptArtifactError, StoreError
from largeforge_ray.store import Artifact, RowJournal, Store, artifact_key, lineage_tree, open_store

BUCKET = "forge-bucket"
KEY = artifact_key("dataset", {"n": 1}, [])

UPLOAD_AND_DIE = """
import os, signal, sys
from largeforge_ray.store import open_store
from pathlib import Path
store = open_store(sys.argv[1])
at = sys.argv[3]
method = {"before": "_commit", "after": "remove"}[at]
setattr(type(store._files), method, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
store.publish("dataset", sys.argv[4], "rows", [], {}, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "cache"))
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "deep").mkdir(parents=True)
    (folder / "a [1]*").write_text("odd name")
    (folder / "deep/weights").write_bytes(bytes(range(256)) * 1000)
    return folder


def test_an_artifact_goes_there_and_back(store: Store, folder: Path, tmp_path: Path) -> None:
    assert store.find("dataset", KEY) is None
    made = store.publish("dataset", KEY, "rows", [], {"n": 1}, folder, {"rows": 1}, {})
    again = pickle.loads(pickle.dumps(store))
    assert again.find("dataset", KEY) == made
    assert again.get("rows") == again.get(KEY[:6]) == made
    there = again.fetch(made)
    assert (there / "a [1]*").read_text() == "odd name"
    assert (there / "deep/weights").read_bytes() == bytes(range(256)) * 1000
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert lineage_tree(store, made).artifact == made
    assert store.list(".staging") == []
    assert store.list(made.location) == [f"{made.location}/artifact.json", made.data]


def test_concurrent_publishers_get_the_one_winner(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 4
    barrier = threading.Barrier(count)
    commit = store._files._commit  # type: ignore[attr-defined]

    def together(artifact: Artifact) -> bool:
        barrier.wait(30)
        return bool(commit(artifact))

    monkeypatch.setattr(store._files, "_commit", together)
    results: list[Artifact] = []

    def work(number: int) -> None:
        with store.staging("dataset", KEY) as folder:
            (folder / "a").write_text(str(number))
            results.append(store.publish("dataset", KEY, f"by-{number}", [], {}, folder))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == count
    assert all(result == results[0] for result in results)
    assert f"by-{(store.fetch(results[0]) / 'a').read_text()}" == results[0].name
    assert store.list(results[0].location) == [f"{results[0].location}/artifact.json", results[0].data]


@pytest.mark.parametrize("at", ["before", "after"])
def test_kill_9_around_the_record_leaves_all_or_nothing(store: Store, folder: Path, at: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", UPLOAD_AND_DIE, store.url, str(folder), at, KEY], check=False, env=os.environ
    )
    assert ended.returncode == -signal.SIGKILL
    where = f"artifacts/dataset/{KEY[:16]}"
    assert len(store.list(where)) == (1 if at == "before" else 2)
    found = store.find("dataset", KEY)
    assert (found is not None) == (at == "after")
    open_store(store.url)
    assert store.list(".staging") == []
    if found is None:
        assert store.list(where) == []
    made = store.publish("dataset", KEY, "rows", [], {}, folder)
    assert found in (None, made)
    assert (store.fetch(made) / "deep/weights").stat().st_size == 256_000


def test_damage_is_found_and_a_damaged_copy_is_fetched_again(store: Store, folder: Path) -> None:
    made = store.publish("dataset", KEY, "rows", [], {}, folder)
    there = store.fetch(made)
    (there / "deep/weights").write_bytes(b"\0")
    from largeforge_ray.store.remote import RemoteFiles

    again = RemoteFiles(store.url).fetch(made)  # as another process would: nothing is verified there yet
    assert (again / "deep/weights").stat().st_size == 256_000
    store.write_bytes(f"{made.data}/deep/weights", bytes(256_000))
    (there / "deep/weights").write_bytes(b"\0")
    with pytest.raises(CorruptArtifactError, match=r"s3://.*deep/weights: expected sha256"):
        RemoteFiles(store.url).fetch(made)
    store.remove(f"{made.data}/deep/weights")
    with pytest.raises(CorruptArtifactError, match="found no file"):
        store.find("dataset", KEY)
    with pytest.raises(CorruptArtifactError, match="delete"):
        RemoteFiles(store.url).fetch(made)
    store.remove(made.location)
    assert store.find("dataset", KEY) is None
    assert not store.exists(made.location)


def test_journal_and_small_files(store: Store) -> None:
    journal = RowJournal(store, KEY)
    journal.append([{"row_key": "a", "error": None, "messages": []}])
    journal.append([{"row_key": "b", "error": "slow", "messages": None}])
    assert journal.done() == {"a"}
    assert [row["row_key"] for row in journal.rows()] == ["a", "b"]
    journal.clear()
    assert journal.done() == set()
    store.write_bytes("runs/r/plan.json", b"1")
    assert store.list("runs") == ["runs/r"]
    assert store.exists("runs/r/plan.json")
    assert not store.exists("runs/s")
    store.remove("runs/none")


def test_a_missing_bucket_and_missing_credentials_are_named(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match="cannot write s3://no-such-bucket/x/"):
        open_store("s3://no-such-bucket/x")
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=f"cannot write {url}/.*check the store's address and access"):
        open_store(url)
    s3fs.S3FileSystem.clear_instance_cache()
