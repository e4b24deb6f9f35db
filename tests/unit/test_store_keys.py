"""Artifact keys and records: what changes a key, what does not, and what a record may not say."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.errors import ConfigError, CorruptArtifactError, StoreError
from largeforge_ray.store import artifact_key
from largeforge_ray.store.artifact import Artifact, ArtifactFile, is_safe, parse_record, plain

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(st.text(), values, max_size=4)
keys = st.text("0123456789abcdef", min_size=64, max_size=64)


def shuffled(value: Any, seed: int) -> Any:
    if isinstance(value, dict):
        items = [(name, shuffled(item, seed)) for name, item in value.items()]
        random.Random(seed).shuffle(items)
        return dict(items)
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


@given(configs, st.lists(keys, max_size=4), st.integers())
def test_order_of_fields_and_parents_does_not_matter(config: Any, parents: list[str], seed: int) -> None:
    moved = random.Random(seed).sample(parents, len(parents))
    assert artifact_key("dataset", config, parents) == artifact_key("dataset", shuffled(config, seed), moved)


@given(configs, configs)
def test_equal_keys_mean_equal_configs(left: Any, right: Any) -> None:
    same = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    assert (artifact_key("dataset", left, []) == artifact_key("dataset", right, [])) == same


@given(configs, st.text(), st.lists(keys, max_size=3), keys)
def test_every_part_changes_the_key(config: Any, name: str, parents: list[str], other: str) -> None:
    key = artifact_key("dataset", config, parents)
    assert len(key) == 64
    assert key != artifact_key("adapter", config, parents)
    assert key != artifact_key("dataset", config, [*parents, other])
    assert key != artifact_key("dataset", {**config, name: [config.get(name)]}, parents)


def test_order_inside_a_list_matters_and_tuples_are_lists() -> None:
    assert artifact_key("sweep", {"rank": [4, 8]}, []) != artifact_key("sweep", {"rank": [8, 4]}, [])
    assert artifact_key("sweep", {"rank": (4, 8)}, []) == artifact_key("sweep", {"rank": [4, 8]}, [])


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"a": {1: 2}}, r"config\.a has the key 1"),
        ({"a": [object()]}, r"config\.a\[0\] is a object"),
        ({"a": float("nan")}, "finite"),
    ],
)
def test_a_config_that_is_not_json_is_refused_by_name(config: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        artifact_key("dataset", config, [])


def record(**changes: Any) -> bytes:
    value = json.loads(Artifact("dataset", "a" * 64, "rows", files=(ArtifactFile("x", 1, "b"),)).to_json())
    return json.dumps({**value, **changes}).encode()


def test_a_record_reads_back_as_it_was_written() -> None:
    artifact = Artifact(
        "dataset", "a" * 64, "rows", ("b" * 64,), {"x": 1}, (ArtifactFile("d/é", 3, "c" * 64),), {"rows": 2}
    )
    assert parse_record(artifact.to_json(), "here") == artifact
    fields = set(json.loads(artifact.to_json()))
    assert fields - {"folder"} == {
        "kind", "key", "name", "parents", "config", "files", "metrics", "cost", "created", "producer",
    }  # fmt: skip


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "", "a//b", "./a", "a\0b", ".."])
def test_a_path_that_leaves_the_artifact_is_refused(path: str) -> None:
    assert not is_safe(path)
    with pytest.raises(CorruptArtifactError, match=r"without '\.\.'"):
        parse_record(record(files=[{"path": path, "bytes": 1, "sha256": "b"}]), "store/artifact.json")
    if path:
        with pytest.raises(CorruptArtifactError, match="inside the artifact"):
            parse_record(record(folder=path), "store/artifact.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        record()[:40],
        b"\xff\xfe",
        b"[]",
        record(kind=None),
        record(files={}),
        record(files=[3]),
        record(files=[{"path": "x", "bytes": True, "sha256": "b"}]),
        record(parents=[1]),
        record(config=[]),
    ],
)
def test_a_damaged_record_names_its_file_and_the_fix(data: bytes) -> None:
    with pytest.raises(CorruptArtifactError, match=r"store/artifact\.json: expected .* delete .* run again"):
        parse_record(data, "store/artifact.json")


def test_metrics_become_plain_numbers_and_nan_becomes_null() -> None:
    numpy = pytest.importorskip("numpy")
    metrics = {"loss": float("nan"), "n": numpy.int64(3), "curve": numpy.array([[1, 0.5]]), "ok": True}
    assert plain(metrics, "metrics") == {"loss": None, "n": 3, "curve": [[1.0, 0.5]], "ok": True}
    with pytest.raises(StoreError, match=r"metrics\.x is a object"):
        plain({"x": object()}, "metrics")
