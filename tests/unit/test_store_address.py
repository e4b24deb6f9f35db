"""An address is opened by whoever gets it, wherever the store is."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from largeforge_ray.errors import StoreError
from largeforge_ray.store import Artifact, Store, artifact_key, local_folder, open_store
from largeforge_ray.store.address import for_arrow


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("LARGEFORGE_CACHE", str(tmp_path / "cache"))
    return open_store(
        tmp_path / "forge" if request.param == "local" else f"memory://{uuid.uuid4().hex}/forge"
    )


def publish(store: Store, folder: Path) -> Artifact:
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"rows")
    return store.publish("dataset", artifact_key("dataset", {"n": 1}, []), "rows", [], {}, folder)


def test_a_folder_comes_back_from_its_address(store: Store, tmp_path: Path) -> None:
    address = store.address(publish(store, tmp_path / "made"))
    assert (local_folder(address) / "train.parquet").read_bytes() == b"rows"
    assert local_folder(str(local_folder(address))) == local_folder(address)


def test_a_file_below_an_address_opens_in_arrow(store: Store, tmp_path: Path) -> None:
    from pyarrow.fs import LocalFileSystem

    path, files = for_arrow(f"{store.address(publish(store, tmp_path / 'made'))}/train.parquet")
    with (files or LocalFileSystem()).open_input_stream(path) as stream:
        assert stream.read() == b"rows"


def test_an_artifact_that_is_gone_is_named(tmp_path: Path) -> None:
    store = open_store(f"memory://{uuid.uuid4().hex}/forge")
    artifact = publish(store, tmp_path / "made")
    address = store.address(artifact)
    store.remove(artifact.location)
    with pytest.raises(StoreError, match=f"no artifact dataset/{artifact.key[:16]}"):
        local_folder(address)
